#include "activation_memory.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "divide.hpp"

namespace weightpager {
namespace {

constexpr int64_t kAligned = 64;
constexpr size_t kMostPairs = 1 << 20;  // of buffers that are needed at once; a model of 24 layers has a few thousand

int64_t rounded(int64_t bytes) { return divide_up(bytes, kAligned) * kAligned; }

// Of each buffer those that are needed while it is.
std::vector<std::vector<uint32_t>> contemporaries(const std::vector<Buffer>& buffers) {
    std::vector<std::vector<uint32_t>> found(buffers.size());
    std::vector<uint32_t> needed;
    size_t pairs = 0;
    for (size_t one = 0; one < buffers.size(); ++one) {
        const auto is_over = [&](uint32_t other) { return buffers[other].last < buffers[one].first; };
        needed.erase(std::remove_if(needed.begin(), needed.end(), is_over), needed.end());
        pairs += needed.size();
        if (pairs > kMostPairs)
            throw std::invalid_argument("expected at most 2^20 pairs of values that are needed at once, found more by step " +
                                        std::to_string(buffers[one].first));
        for (uint32_t other : needed) found[other].push_back(static_cast<uint32_t>(one));
        found[one] = needed;
        needed.push_back(static_cast<uint32_t>(one));
    }
    return found;
}

}  // namespace

ActivationLayout lay_out(const std::vector<Buffer>& buffers) {
    std::vector<size_t> order(buffers.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return buffers[a].bytes > buffers[b].bytes; });
    std::vector<std::vector<uint32_t>> others = contemporaries(buffers);
    ActivationLayout layout;
    layout.offsets.assign(buffers.size(), -1);
    for (size_t one : order) {
        std::vector<uint32_t>& placed = others[one];
        const auto is_unplaced = [&](uint32_t other) { return layout.offsets[other] < 0; };
        placed.erase(std::remove_if(placed.begin(), placed.end(), is_unplaced), placed.end());
        std::sort(placed.begin(), placed.end(), [&](uint32_t a, uint32_t b) { return layout.offsets[a] < layout.offsets[b]; });
        const int64_t bytes = rounded(buffers[one].bytes);
        int64_t at = 0;
        for (uint32_t other : placed) {
            if (layout.offsets[other] >= at + bytes) break;
            at = std::max(at, layout.offsets[other] + rounded(buffers[other].bytes));
        }
        layout.offsets[one] = at;
        layout.bytes = std::max(layout.bytes, at + bytes);
    }
    return layout;
}

}  // namespace weightpager

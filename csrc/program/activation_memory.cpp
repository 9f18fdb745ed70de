#include "activation_memory.hpp"

#include <algorithm>
#include <numeric>

#include "divide.hpp"

namespace weightpager {
namespace {

constexpr int64_t kAligned = 64;

int64_t rounded(int64_t bytes) { return divide_up(bytes, kAligned) * kAligned; }

}  // namespace

ActivationLayout lay_out(const std::vector<Buffer>& buffers) {
    std::vector<size_t> order(buffers.size()), placed;
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return buffers[a].bytes > buffers[b].bytes; });
    ActivationLayout layout;
    layout.offsets.assign(buffers.size(), 0);
    for (size_t one : order) {
        const Buffer& buffer = buffers[one];
        const int64_t bytes = rounded(buffer.bytes);
        int64_t at = 0;
        for (size_t other : placed) {  // by offset
            if (buffers[other].last < buffer.first || buffer.last < buffers[other].first) continue;
            if (layout.offsets[other] >= at + bytes) break;
            at = std::max(at, layout.offsets[other] + rounded(buffers[other].bytes));
        }
        layout.offsets[one] = at;
        layout.bytes = std::max(layout.bytes, at + bytes);
        const auto behind = std::upper_bound(placed.begin(), placed.end(), one, [&](size_t a, size_t b) {
            return layout.offsets[a] < layout.offsets[b];
        });
        placed.insert(behind, one);
    }
    return layout;
}

}  // namespace weightpager

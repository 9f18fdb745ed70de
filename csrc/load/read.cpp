#include "read.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace weightpager {
namespace {

constexpr size_t kMostViews = 1024;  // of one system call

void add_page(Read& read, const PageSources& sources, size_t i) {
    uint8_t* slot = sources.memory + sources.slots[i] * static_cast<int64_t>(sources.page_bytes);
    read.pages.push_back(sources.pages[i]);
    read.slots.push_back(slot);
    Digest digest;
    std::memcpy(digest.data(), sources.expected + i * sizeof(Digest), sizeof digest);
    read.expected.push_back(digest);
    if (!read.views.empty()) {
        iovec& last = read.views.back();
        if (static_cast<uint8_t*>(last.iov_base) + last.iov_len == slot) {
            last.iov_len += sources.page_bytes;
            return;
        }
    }
    read.views.push_back({slot, sources.page_bytes});
}

bool follows(const PageSources& sources, size_t i) {
    return sources.pages[i] == sources.pages[i - 1] + 1 && sources.files[i] == sources.files[i - 1] &&
           sources.offsets[i] == sources.offsets[i - 1] + static_cast<int64_t>(sources.page_bytes);
}

}  // namespace

Progress Read::take_result() {
    if (result == -EINTR || result == -EAGAIN) return Progress::again;
    if (result == kNoThread) {
        failure = Failure::no_thread;
        return Progress::failed;
    }
    if (result <= 0) {
        failure = result == 0 ? Failure::end_of_file : Failure::storage;
        error = static_cast<int>(-result);
        return Progress::failed;
    }
    advance(static_cast<size_t>(result));
    return done < bytes() ? Progress::again : Progress::complete;
}

void Read::advance(size_t count) {
    done += count;
    size_t passed = 0;
    while (passed < views.size() && count >= views[passed].iov_len) count -= views[passed++].iov_len;
    views.erase(views.begin(), views.begin() + static_cast<std::ptrdiff_t>(passed));
    if (count == 0) return;
    views.front().iov_base = static_cast<uint8_t*>(views.front().iov_base) + count;
    views.front().iov_len -= count;
}

void Read::check(const Hasher& hasher) {
    std::vector<Digest> found(pages.size());
    blake3(hasher, slots.data(), slots.size(), page_bytes, found.data());
    for (size_t i = 0; i < pages.size(); ++i) {
        if (found[i] == expected[i]) continue;
        failure = Failure::corrupt;
        corrupt_page = pages[i];
        return;
    }
}

std::vector<Read> plan_reads(const PageSources& sources, size_t most) {
    most = std::min(most, kMostViews);
    std::vector<Read> reads;
    for (size_t i = 0; i < sources.count; ++i) {
        if (i == 0 || !follows(sources, i) || reads.back().pages.size() == most) {
            reads.emplace_back();
            reads.back().file = sources.files[i];
            reads.back().offset = sources.offsets[i];
            reads.back().page_bytes = sources.page_bytes;
        }
        add_page(reads.back(), sources, i);
    }
    return reads;
}

}  // namespace weightpager

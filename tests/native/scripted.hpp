// A device whose reads end as a test wants, and pages for it.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <iostream>
#include <mutex>
#include <vector>

#include "load/device.hpp"
#include "load/read.hpp"

namespace weightpager {

inline int failures = 0;

#define EXPECT(condition)                                                               \
    do {                                                                                \
        if (!(condition)) {                                                             \
            std::cout << __func__ << ":" << __LINE__ << ": " << #condition << std::endl; \
            ++failures;                                                                 \
        }                                                                               \
    } while (false)

inline constexpr size_t kPage = 4096;
inline constexpr int64_t kHangs = INT64_MIN;

inline uint8_t byte_of(int64_t page, size_t i) {
    return static_cast<uint8_t>((static_cast<size_t>(page) * 2654435761u + i * 40503u) >> 7);
}

inline std::vector<uint8_t> content(int64_t page) {
    std::vector<uint8_t> bytes(kPage);
    for (size_t i = 0; i < kPage; ++i) bytes[i] = byte_of(page, i);
    return bytes;
}

inline Digest digest(const std::vector<uint8_t>& bytes) {
    const uint8_t* buffer = bytes.data();
    Digest found;
    blake3(*hashers()[0], &buffer, 1, bytes.size(), &found);
    return found;
}

// What a load is made of. Slots are given in falling order, so that pages are scattered.
struct Pages {
    std::vector<int64_t> pages, offsets, slots;
    std::vector<int32_t> files;
    std::vector<uint8_t> expected, memory;

    explicit Pages(std::vector<int64_t> wanted, int file = 0) : pages(std::move(wanted)) {
        for (size_t i = 0; i < pages.size(); ++i) {
            offsets.push_back(pages[i] * static_cast<int64_t>(kPage));
            slots.push_back(static_cast<int64_t>(pages.size() - 1 - i));
            files.push_back(file);
            const Digest one = digest(content(pages[i]));
            expected.insert(expected.end(), one.begin(), one.end());
        }
        memory.resize(pages.size() * kPage);
    }

    std::vector<Read> reads(size_t most = 4) {
        return plan_reads({pages.size(), pages.data(), files.data(), offsets.data(), slots.data(), expected.data(),
                           memory.data(), kPage},
                          most);
    }

    bool right() const {
        for (size_t i = 0; i < pages.size(); ++i)
            if (std::memcmp(&memory[static_cast<size_t>(slots[i]) * kPage], content(pages[i]).data(), kPage) != 0) return false;
        return true;
    }
};

// Fills a read's views with `count` bytes from where it stands; as the kernel would.
inline void fill(Read& read, size_t count) {
    size_t at = read.done;
    for (const iovec& view : read.views)
        for (size_t i = 0; i < view.iov_len && count > 0; ++i, ++at, --count)
            static_cast<uint8_t*>(view.iov_base)[i] = byte_of(read.pages[at / kPage], at % kPage);
}

// What the reads of a scripted device do.
struct Script {
    std::function<int64_t(Read&)> result = [](Read& read) { return static_cast<int64_t>(read.bytes() - read.done); };
    std::mutex lock;
    std::condition_variable changed;
    bool woken = false;
    std::vector<int64_t> begun;  // the first page of each
    std::vector<Read*> ended, hanging;
    size_t most = 0, bytes = 0;  // in flight

    void resume() {
        const std::lock_guard<std::mutex> held(lock);
        for (Read* read : hanging) end(*read, static_cast<int64_t>(read->bytes() - read->done));
        hanging.clear();
        changed.notify_all();
    }

    void end(Read& read, int64_t result_of) {
        if (result_of > 0) fill(read, static_cast<size_t>(result_of));
        read.result = result_of;
        ended.push_back(&read);
    }
};

class Scripted : public Device {
   public:
    explicit Scripted(Script& script) : script_(script) {}

    const char* name() const override { return "scripted"; }

    void begin(Read& read) override {
        const std::lock_guard<std::mutex> held(script_.lock);
        if (read.done == 0) script_.begun.push_back(read.pages[0]);
        const int64_t result = script_.result(read);
        if (result == kHangs)
            script_.hanging.push_back(&read);
        else
            script_.end(read, result);
        script_.most = std::max(script_.most, script_.hanging.size() + script_.ended.size());
    }

    void wait(std::vector<Read*>& ended, int64_t microseconds) override {
        std::unique_lock<std::mutex> held(script_.lock);
        const auto news = [&] { return script_.woken || !script_.ended.empty(); };
        if (microseconds < 0)
            script_.changed.wait(held, news);
        else
            script_.changed.wait_for(held, std::chrono::microseconds(microseconds), news);
        script_.woken = false;
        ended.insert(ended.end(), script_.ended.begin(), script_.ended.end());
        script_.ended.clear();
    }

    void wake() override {
        const std::lock_guard<std::mutex> held(script_.lock);
        script_.woken = true;
        script_.changed.notify_all();
    }

   private:
    Script& script_;
};

}  // namespace weightpager

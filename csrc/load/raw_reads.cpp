#include "raw_reads.hpp"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <thread>

namespace weightpager {
namespace {

bool complete(Read& read, const Hasher& hasher) {
    Progress progress;
    do {
        const ssize_t count = preadv(read.file, read.views.data(), static_cast<int>(read.views.size()),
                                     static_cast<off_t>(read.offset + static_cast<int64_t>(read.done)));
        read.result = count < 0 ? -errno : count;
        progress = read.take_result();
    } while (progress == Progress::again);
    if (progress == Progress::complete) read.check(hasher);
    return read.failure == Failure::none;
}

}  // namespace

double time_raw_reads(std::vector<Read> reads, unsigned threads, const Hasher& hasher) {
    std::atomic<size_t> next{0};
    std::atomic<unsigned> ready{0};
    std::atomic<bool> go{false}, failed{false};
    std::vector<std::thread> team;
    for (unsigned i = 0; i < threads; ++i)
        team.emplace_back([&] {
            ++ready;
            while (!go) std::this_thread::yield();
            for (size_t at = next++; at < reads.size(); at = next++)
                if (!complete(reads[at], hasher)) failed = true;
        });
    while (ready < threads) std::this_thread::yield();
    const auto start = std::chrono::steady_clock::now();
    go = true;
    for (std::thread& thread : team) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    return failed ? -1.0 : seconds.count();
}

}  // namespace weightpager

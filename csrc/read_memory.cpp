#include "read_memory.hpp"

#include <atomic>
#include <cstring>

#include "divide.hpp"
#include "parallel.hpp"

namespace weightpager {
namespace {

constexpr int64_t kShareBytes = 1 << 20;
constexpr int64_t kLineBytes = 64;

// One number of every line: the line is what memory delivers.
uint64_t read_share(const uint8_t* memory, int64_t bytes) {
    uint64_t sums[4] = {};
    for (int64_t at = 0; at + kLineBytes <= bytes; at += kLineBytes) {
        uint64_t value;
        std::memcpy(&value, memory + at, sizeof value);
        sums[at / kLineBytes % 4] += value;
    }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace

uint64_t read_all(const uint8_t* memory, int64_t bytes, int threads) {
    std::atomic<uint64_t> sum{0};
    const int64_t shares = divide_up(bytes, kShareBytes);
    parallel_for(shares, threads, [&](int64_t share) {
        const int64_t first = share * kShareBytes, left = bytes - first;
        sum.fetch_add(read_share(memory + first, left < kShareBytes ? left : kShareBytes), std::memory_order_relaxed);
    });
    return sum.load();
}

}  // namespace weightpager

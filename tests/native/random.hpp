// Numbers that are the same for a seed everywhere: the distributions of the standard library aren't.
#pragma once

#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

class Random {
   public:
    explicit Random(uint64_t seed) : bits_(seed) {}

    int64_t below(int64_t end) { return static_cast<int64_t>(bits_() % static_cast<uint64_t>(end)); }
    int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
    bool one_in(int64_t count) { return below(count) == 0; }

    // In [-1, 1).
    float number() { return static_cast<float>(below(1 << 24)) / (1 << 23) - 1; }

    template <class T>
    T any(const std::vector<T>& of) {
        return of[static_cast<size_t>(below(static_cast<int64_t>(of.size())))];
    }

    std::vector<int32_t> permutation(int64_t count) {
        std::vector<int32_t> order(static_cast<size_t>(count));
        std::iota(order.begin(), order.end(), 0);
        for (int64_t i = count; i > 1; --i)
            std::swap(order[static_cast<size_t>(i - 1)], order[static_cast<size_t>(below(i))]);
        return order;
    }

   private:
    std::mt19937_64 bits_;
};

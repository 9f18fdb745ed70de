// The largest magnitude of some numbers, by which they are scaled.
#pragma once

#include "bfloat16.hpp"
#include "shuffle.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Float widened(const float* from) {
    return load<typename Lanes<N>::Float>(from);
}

template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Float widened(const uint16_t* from) {
    return widen<N>(from);
}

inline float widened_one(float value) { return value; }
inline float widened_one(uint16_t half) { return from_bfloat16(half); }

template <int Distance, class Int, int... I>
WEIGHTPAGER_INLINE int32_t greatest(Int value, std::integer_sequence<int, I...> lanes) {
    if constexpr (Distance == 0) {
        return value[0];
    } else {
        const auto other = shuffle<(I ^ Distance)...>(value, value);
        return greatest<Distance / 2>(value > other ? value : other, lanes);
    }
}

// The largest magnitude, NaN if one isn't finite: then nothing that these inputs take part in is a number. Magnitudes are in
// the order of their bits.
template <int N, class T>
WEIGHTPAGER_INLINE float magnitude(const T* x, int64_t count) {
    using Int = typename Lanes<N>::Int;
    constexpr int32_t kMagnitude = 0x7fffffff, kInfinite = 0x7f800000;
    Int lanes{};
    int64_t i = 0;
    for (; i + N <= count; i += N) {
        const Int bits = reinterpret_cast<Int>(widened<N>(x + i)) & kMagnitude;
        lanes = bits > lanes ? bits : lanes;
    }
    int32_t largest = greatest<N / 2>(lanes, std::make_integer_sequence<int, N>{});
    for (; i < count; ++i) {
        const float value = widened_one(x[i]);
        int32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        bits &= kMagnitude;
        largest = bits > largest ? bits : largest;
    }
    if (largest >= kInfinite) return __builtin_nanf("");
    float found;
    std::memcpy(&found, &largest, sizeof found);
    return found;
}

}  // namespace
}  // namespace weightpager

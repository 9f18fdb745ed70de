// What operators need of vectors beyond lanes.hpp: parts of them, sums over them, and functions of them.
#pragma once

#include "functions.hpp"
#include "half.hpp"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace weightpager {
namespace {  // see bfloat16.hpp

constexpr int kLanes = WEIGHTPAGER_LANES;

using L = Lanes<kLanes>;
using Float = L::Float;
using Bits = L::Bits;
using Int = L::Int;

WEIGHTPAGER_INLINE Float load_floats(const float* from) { return load<Float>(from); }

// bfloat16, widened.
WEIGHTPAGER_INLINE Float load_floats(const uint16_t* from) { return widen<kLanes>(from); }

// float16, widened: of numbers and NaN, as `to_half` writes them.
WEIGHTPAGER_INLINE Float load_floats(const Half* from) {
#if defined(__AVX512F__)
    return (Float)_mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__F16C__) && WEIGHTPAGER_LANES == 8
    return (Float)_mm256_cvtph_ps(load<__m128i>(from));
#elif defined(__aarch64__)
    return (Float)vcvt_f32_f16(load<float16x4_t>(from));
#else
    const Bits halves = __builtin_convertvector(load<L::Half>(from), Bits), magnitude = halves & 0x7fffu;
    const Float value = reinterpret_cast<Float>(magnitude << 13) * kFloatExponent;
    const Bits bits = magnitude > 0x7c00u ? Bits{} + 0x7fc00000u : reinterpret_cast<Bits>(value);
    return reinterpret_cast<Float>(bits | (halves & 0x8000u) << 16);
#endif
}

WEIGHTPAGER_INLINE void store_floats(float* to, Float value) { std::memcpy(to, &value, sizeof value); }

// The first `count` lanes, 0 behind them. Not memcpy, which a variable count makes a call of.
template <class Element>
WEIGHTPAGER_INLINE Float load_part(const Element* from, int64_t count) {
    Element part[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) part[i] = from[i];
    return load_floats(part);
}

WEIGHTPAGER_INLINE void store_part(float* to, Float value, int64_t count) {
    float part[kLanes];
    store_floats(part, value);
    for (int64_t i = 0; i < count; ++i) to[i] = part[i];
}

// Calls `body(at, count)` for stretches of a row that fill a register, and for what is left.
template <class Full, class Part>
WEIGHTPAGER_INLINE void by_registers(int64_t columns, const Full& full, const Part& part) {
    int64_t at = 0;
    for (; at + kLanes <= columns; at += kLanes) full(at);
    if (at < columns) part(at, columns - at);
}

// As lanes of `a` and of `b`, whose lanes count on from those of `a`.
template <int... I>
WEIGHTPAGER_INLINE Float shuffle(Float a, Float b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, Int{I...});
#endif
}

template <int Distance, int... I>
WEIGHTPAGER_INLINE Float swapped(Float a, std::integer_sequence<int, I...>) {
    return shuffle(a, a, std::integer_sequence<int, (I ^ Distance)...>{});
}

using AllLanes = std::make_integer_sequence<int, kLanes>;

// Halves are added to halves: the order is the same everywhere for a number of lanes.
template <int Distance = kLanes / 2>
WEIGHTPAGER_INLINE float sum_of(Float value) {
    if constexpr (Distance == 0)
        return value[0];
    else
        return sum_of<Distance / 2>(value + swapped<Distance>(value, AllLanes{}));
}

WEIGHTPAGER_INLINE Float larger(Float a, Float b) { return a > b ? a : b; }

template <int Distance = kLanes / 2>
WEIGHTPAGER_INLINE float largest_of(Float value) {
    if constexpr (Distance == 0)
        return value[0];
    else
        return largest_of<Distance / 2>(larger(value, swapped<Distance>(value, AllLanes{})));
}

template <int Distance, int... I>
WEIGHTPAGER_INLINE void exchange(Float& a, Float& b, std::integer_sequence<int, I...>) {
    const Float low = shuffle(a, b, std::integer_sequence<int, ((I & Distance) == 0 ? I : kLanes + I - Distance)...>{});
    const Float high = shuffle(a, b, std::integer_sequence<int, ((I & Distance) == 0 ? I + Distance : kLanes + I)...>{});
    a = low;
    b = high;
}

// Lane j of row i becomes lane i of row j.
template <int Distance = kLanes / 2>
WEIGHTPAGER_INLINE void transpose(Float (&rows)[kLanes]) {
    unroll<kLanes>([&](auto i) WEIGHTPAGER_INLINED {
        constexpr int I = decltype(i)::value;
        if constexpr ((I & Distance) == 0) exchange<Distance>(rows[I], rows[I + Distance], AllLanes{});
    });
    if constexpr (Distance > 1) transpose<Distance / 2>(rows);
}

}  // namespace
}  // namespace weightpager

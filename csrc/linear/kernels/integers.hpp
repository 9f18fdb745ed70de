// int8 or int4 weights times int16 activations, summed up in int32: two or three instructions for a register of pairs.
#pragma once

#include "lanes.hpp"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace weightpager {
namespace {  // see bfloat16.hpp

// N pairs of int16, as multiplied: widened from int8, or from every fourth part of N words of int4.
#if defined(__SSE2__)

template <int N>
struct IntegerPairs {
    typename Lanes<N>::Short values;
};

template <int N>
WEIGHTPAGER_INLINE IntegerPairs<N> integer_pairs(typename Lanes<N>::Short values) {
    return {values};
}

template <int N>
WEIGHTPAGER_INLINE IntegerPairs<N> read_integers(const uint8_t* pairs) {
#if defined(__AVX512BW__)
    if constexpr (N == 16) return {(typename Lanes<N>::Short)_mm512_cvtepi8_epi16(load<__m256i>(pairs))};
#endif
#if defined(__AVX2__)
    if constexpr (N == 8) return {(typename Lanes<N>::Short)_mm256_cvtepi8_epi16(load<__m128i>(pairs))};
#endif
    if constexpr (N == 4) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(pairs));
        return {(typename Lanes<N>::Short)_mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8)};
    }
}

// sum[o] + weights[o].even * x.even + weights[o].odd * x.odd
template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Int multiply_add(typename Lanes<N>::Int sum, IntegerPairs<N> weights,
                                                       uint32_t x) {
    using Int = typename Lanes<N>::Int;
    const int pair = static_cast<int>(x);
    const auto all = weights.values;
#if defined(__AVX512VNNI__)
    if constexpr (N == 16) return (Int)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)all, _mm512_set1_epi32(pair));
#elif defined(__AVX512BW__)
    if constexpr (N == 16) return sum + (Int)_mm512_madd_epi16((__m512i)all, _mm512_set1_epi32(pair));
#endif
#if defined(__AVX2__)
    if constexpr (N == 8) return sum + (Int)_mm256_madd_epi16((__m256i)all, _mm256_set1_epi32(pair));
#endif
    if constexpr (N == 4) return sum + (Int)_mm_madd_epi16((__m128i)all, _mm_set1_epi32(pair));
}

#elif defined(__ARM_NEON)

template <int N>
using IntegerPairs = int16x8_t;

template <int N>
WEIGHTPAGER_INLINE int16x8_t integer_pairs(typename Lanes<N>::Short values) {
    return (int16x8_t)values;
}

template <int N>
WEIGHTPAGER_INLINE int16x8_t read_integers(const uint8_t* pairs) {
    static_assert(N == 4);
    return vmovl_s8(load<int8x8_t>(pairs));
}

template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Int multiply_add(typename Lanes<N>::Int sum, int16x8_t weights, uint32_t x) {
    const int16x8_t pair = vreinterpretq_s16_u32(vdupq_n_u32(x));
    const int32x4_t low = vmull_s16(vget_low_s16(weights), vget_low_s16(pair));
    const int32x4_t high = vmull_high_s16(weights, pair);
    return sum + (typename Lanes<N>::Int)vpaddq_s32(low, high);
}

#else

template <int N>
struct IntegerPairs {
    typename Lanes<N>::Int even, odd;
};

template <int N>
WEIGHTPAGER_INLINE IntegerPairs<N> integer_pairs(typename Lanes<N>::Short values) {
    using L = Lanes<N>;
    const auto bits = reinterpret_cast<typename L::Bits>(values);
    return {reinterpret_cast<typename L::Int>(bits << 16) >> 16, reinterpret_cast<typename L::Int>(bits) >> 16};
}

template <int N>
WEIGHTPAGER_INLINE IntegerPairs<N> read_integers(const uint8_t* pairs) {
    using L = Lanes<N>;
    const auto bits = __builtin_convertvector(load<typename L::Half>(pairs), typename L::Bits);
    return {reinterpret_cast<typename L::Int>(bits << 24) >> 24, reinterpret_cast<typename L::Int>(bits << 16) >> 24};
}

template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Int multiply_add(typename Lanes<N>::Int sum, const IntegerPairs<N>& weights,
                                                       uint32_t x) {
    const int32_t even = static_cast<int16_t>(x & 0xffff), odd = static_cast<int16_t>(x >> 16);
    return sum + weights.even * even + weights.odd * odd;
}

#endif

#if defined(__ARM_FEATURE_DOTPROD)

// Four inputs in signed bytes, `Half` of two, of four words of int4 whose numbers have been made two's complements.
template <int Half>
WEIGHTPAGER_INLINE int8x16_t bytes_of_int4(Lanes<4>::Bits words) {
    const int8x16_t bytes = (int8x16_t)words;
    return vshrq_n_s8(Half == 0 ? vshlq_n_s8(bytes, 4) : bytes, 4);
}

// sum[o] + weights[o] . x, of four bytes each
WEIGHTPAGER_INLINE Lanes<4>::Int multiply_add_bytes(Lanes<4>::Int sum, int8x16_t weights, uint32_t x) {
    return (Lanes<4>::Int)vdotq_s32((int32x4_t)sum, weights, vreinterpretq_s8_u32(vdupq_n_u32(x)));
}

#endif

#if defined(__AVX512VNNI__)

// sum[o] + weights[o] . x, of four bytes each; those of the weights have no sign.
template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Int multiply_add_bytes(typename Lanes<N>::Int sum, typename Lanes<N>::Bits weights,
                                                             uint32_t x) {
    using Int = typename Lanes<N>::Int;
    const int four = static_cast<int>(x);
    if constexpr (N == 16) return (Int)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(four));
    if constexpr (N == 8) return (Int)_mm256_dpbusd_epi32((__m256i)sum, (__m256i)weights, _mm256_set1_epi32(four));
}

#endif

#if defined(__AVX2__) && WEIGHTPAGER_LANES == 8

// Two sums for each output, each of two bytes of its four; those of the weights have no sign.
WEIGHTPAGER_INLINE Lanes<8>::Short multiply_add_pairs(Lanes<8>::Short sums, Lanes<8>::Bits weights, uint32_t x) {
    const __m256i four = _mm256_set1_epi32(static_cast<int>(x));
    return sums + (Lanes<8>::Short)_mm256_maddubs_epi16((__m256i)weights, four);
}

WEIGHTPAGER_INLINE Lanes<8>::Int sum_pairs(Lanes<8>::Short sums) {
    return (Lanes<8>::Int)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(1));
}

#endif

// A pair of inputs, `Pair` of four, of N words of int4 whose numbers have been made two's complements.
template <int N, int Pair>
WEIGHTPAGER_INLINE IntegerPairs<N> pair_of_int4(typename Lanes<N>::Bits words) {
    using Short = typename Lanes<N>::Short;
    constexpr int to_the_top[] = {12, 4, 8, 0};
    typedef uint16_t Halves __attribute__((vector_size(sizeof(Short))));
    return integer_pairs<N>((Short)((Halves)words << to_the_top[Pair]) >> 12);
}

}  // namespace
}  // namespace weightpager

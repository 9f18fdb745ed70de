// What a processor that multiplies pairs of bfloat16 does with them: AVX-512 BF16, or Arm's BFDOT.
#pragma once

#include "lanes.hpp"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

namespace weightpager {
namespace {  // see bfloat16.hpp

#if defined(__AVX512BF16__)

// sum[o] + weights[o].even * x.even + weights[o].odd * x.odd
template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Float dot(typename Lanes<N>::Float sum, typename Lanes<N>::Bits weights,
                                                uint32_t x) {
    if constexpr (N == 16)
        return (typename Lanes<N>::Float)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weights,
                                                          (__m512bh)_mm512_set1_epi32(static_cast<int>(x)));
    else
        return (typename Lanes<N>::Float)_mm256_dpbf16_ps((__m256)sum, (__m256bh)weights,
                                                          (__m256bh)_mm256_set1_epi32(static_cast<int>(x)));
}

// The scales of N outputs, each twice: once for either input of a pair.
template <int N>
struct PairScales {
    typename Lanes<N>::Float low, high;

    WEIGHTPAGER_INLINE void read(const uint16_t* from) {
        const auto scale = widen<N>(from);
        if constexpr (N == 16) {
            const auto twice = [](int first) {
                const __m512i lane = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
                return _mm512_add_epi32(lane, _mm512_set1_epi32(first));
            };
            low = (typename Lanes<N>::Float)_mm512_permutexvar_ps(twice(0), (__m512)scale);
            high = (typename Lanes<N>::Float)_mm512_permutexvar_ps(twice(8), (__m512)scale);
        } else {
            low = (typename Lanes<N>::Float)_mm256_permutexvar_ps(_mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3),
                                                                  (__m256)scale);
            high = (typename Lanes<N>::Float)_mm256_permutexvar_ps(_mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7),
                                                                   (__m256)scale);
        }
    }
};

// N pairs of int8 times their scales, rounded to bfloat16.
template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Bits dequantised(const uint8_t* pairs, const PairScales<N>& scales) {
    using L = Lanes<N>;
    // GCC converts vectors of bytes one by one when it isn't told how.
    if constexpr (N == 16) {
        const auto half = [&](int first, auto scale) {
            const __m512i wide = _mm512_cvtepi8_epi32(load<__m128i>(pairs + first));
            return _mm512_mul_ps(_mm512_cvtepi32_ps(wide), (__m512)scale);
        };
        return (typename L::Bits)_mm512_cvtne2ps_pbh(half(N, scales.high), half(0, scales.low));
    } else {
        const auto half = [&](int first, auto scale) {
            const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(pairs + first)));
            return _mm256_mul_ps(_mm256_cvtepi32_ps(wide), (__m256)scale);
        };
        return (typename L::Bits)_mm256_cvtne2ps_pbh(half(N, scales.high), half(0, scales.low));
    }
}

#else

template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Float dot(typename Lanes<N>::Float sum, typename Lanes<N>::Bits weights,
                                                uint32_t x) {
    static_assert(N == 4);
    return (typename Lanes<N>::Float)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)weights,
                                                 (bfloat16x8_t)vdupq_n_u32(x));
}

#endif

}  // namespace
}  // namespace weightpager

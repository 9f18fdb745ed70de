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

// A pair of inputs, `Pair` of four, of N words of int4, in bfloat16; without their scales.
template <int N, int Pair>
WEIGHTPAGER_INLINE typename Lanes<N>::Bits bfloat16_of_int4(typename Lanes<N>::Bits words) {
    constexpr int first_bit[] = {0, 8, 4, 12};
    using Bits = typename Lanes<N>::Bits;
    const Bits wanted = words >> first_bit[Pair];  // in the low four bits of either half
    if constexpr (N == 16) {
        // Twice, as five bits of an index are looked at.
        alignas(64) static constexpr uint16_t kNumbers[32] = {
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,   // -8 to -1
            0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,   // 0 to 7
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
            0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
        return (Bits)_mm512_permutexvar_epi16((__m512i)wanted, load<__m512i>(kNumbers));
    } else {
        alignas(32) static constexpr uint16_t kNumbers[16] = {
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
            0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};
        return (Bits)_mm256_permutexvar_epi16((__m256i)wanted, load<__m256i>(kNumbers));
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

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

// SIMD in GCC's and clang's vector extensions: one source serves every instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "blocks are little-endian: an even input feature is the low half of a pair"
#endif

#define WEIGHTPAGER_INLINED __attribute__((always_inline))  // of a lambda
#define WEIGHTPAGER_INLINE inline WEIGHTPAGER_INLINED

namespace weightpager {
namespace {  // see bfloat16.hpp

template <int N>
struct Lanes {
    typedef float Float __attribute__((vector_size(N * sizeof(float))));
    typedef uint32_t Bits __attribute__((vector_size(N * sizeof(uint32_t))));
    typedef int32_t Int __attribute__((vector_size(N * sizeof(int32_t))));
    typedef uint16_t Half __attribute__((vector_size(N * sizeof(uint16_t))));
    typedef int16_t Short __attribute__((vector_size(2 * N * sizeof(int16_t))));  // a pair in each lane
};

template <class V>
WEIGHTPAGER_INLINE V load(const void* from) {
    V value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <int I>
using Index = std::integral_constant<int, I>;

template <class Body, int... I>
WEIGHTPAGER_INLINE void unroll_over(std::integer_sequence<int, I...>, const Body& body) {
    (body(Index<I>{}), ...);
}

// Unrolled by the language, not by the optimiser: accumulators indexed in a loop that stays a loop live in memory.
template <int N, class Body>
WEIGHTPAGER_INLINE void unroll(const Body& body) {
    unroll_over(std::make_integer_sequence<int, N>{}, body);
}

// a * b + c, rounded once where the processor can. Written out: left to themselves, compilers do so in one loop and not in
// another, and a token's numbers would depend on how many are computed with it.
template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Float fused(typename Lanes<N>::Float a, typename Lanes<N>::Float b,
                                                  typename Lanes<N>::Float c) {
    using Float = typename Lanes<N>::Float;
#if defined(__AVX512F__)
    if constexpr (N == 16) return (Float)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#endif
#if defined(__FMA__)
    if constexpr (N == 8) return (Float)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    if constexpr (N == 4) return (Float)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#endif
    return a * b + c;
}

// N bfloat16, widened.
template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Float widen(const void* from) {
    using L = Lanes<N>;
#if defined(__AVX2__)  // GCC widens a half at a time when it isn't told how
    if constexpr (N == 8) return (typename L::Float)(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load<__m128i>(from)), 16));
#endif
    const auto halves = __builtin_convertvector(load<typename L::Half>(from), typename L::Bits);
    return reinterpret_cast<typename L::Float>(halves << 16);
}

// As `to_bfloat16`, lane by lane.
template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Half narrow(typename Lanes<N>::Float value) {
    using L = Lanes<N>;
    const auto bits = reinterpret_cast<typename L::Bits>(value);
    const auto rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const auto number = (bits & 0x7fffffffu) <= 0x7f800000u;
    return __builtin_convertvector(number ? rounded : rounded * 0 + 0x7fc0u, typename L::Half);
}

// e^x: a power of two times a polynomial, as in Cephes' expf; off by less than 3e-7 of the value.
template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Float exponential(typename Lanes<N>::Float x) {
    using L = Lanes<N>;
    using Float = typename L::Float;
    constexpr float kLargest = 88.0f, kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no place for a fraction
    x = x > kLargest ? Float{} + kLargest : x;
    x = x < -kLargest ? Float{} - kLargest : x;
    const Float whole = (x * 1.44269504f + kRound) - kRound;
    const Float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Float series = Float{} + 1.9875691500e-4f;
    for (float next : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        series = series * rest + next;
    const auto exponent = (__builtin_convertvector(whole, typename L::Int) + 127) << 23;
    return (series * rest * rest + rest + 1.0f) * reinterpret_cast<Float>(exponent);
}

}  // namespace
}  // namespace weightpager

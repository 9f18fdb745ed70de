// SIMD in GCC's and clang's vector extensions: one source serves every instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "blocks are little-endian: an even input feature is the low half of a pair"
#endif

#define WEIGHTPAGER_INLINE inline __attribute__((always_inline))

namespace weightpager {
namespace {  // see bfloat16.hpp

template <int N>
struct Lanes {
    typedef float Float __attribute__((vector_size(N * sizeof(float))));
    typedef uint32_t Bits __attribute__((vector_size(N * sizeof(uint32_t))));
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

}  // namespace
}  // namespace weightpager

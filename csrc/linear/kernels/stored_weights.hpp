// How weights are stored, and what they are multiplied with: for kernel.cpp, which the build gives WEIGHTPAGER_EXACT.
#pragma once

#include "integers.hpp"
#include "lanes.hpp"

#if defined(WEIGHTPAGER_EXACT)
#include "dot.hpp"
#endif

namespace weightpager {
namespace {  // see bfloat16.hpp

// A step is two input features, or eight: what a block holds of them for N outputs is read at once. How weights are stored
// decides what that is, what activations it is multiplied with, and what sums them up:
//   Input, inputs, rows    activations of a step: how many, in rows of single ones or of pairs
//   bytes, row_bytes       of a step per output, and from one output to the next
//   operand                what a row of activations is multiplied with
//   scaled, integers       whether a block's sums are multiplied by its rows' scales, and by those of the activations
//   passes                 over a block; after the first its sums count 256 times, and the activations' next rows follow
//   waits                  whether an addition would wait for the last one to the same sum
//   sums, excess           how many each output has, of as many rows of activations; by how much numbers are read too large

struct Unscaled {
    static constexpr bool scaled = false, integers = false, waits = true;
    static constexpr int passes = 1, sums = 1, excess = 0;
    static constexpr int64_t most_tokens = INT64_MAX;
};

#if defined(WEIGHTPAGER_EXACT)

struct Bfloat16Weights : Unscaled {
    using Input = uint32_t;  // a pair of bfloat16
    static constexpr int inputs = 2, rows = 1, bytes = 4, row_bytes = 4;

    template <int N>
    using Sum = typename Lanes<N>::Float;

    template <int N>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Bits read(const uint8_t* step, int64_t) {
        return load<typename Lanes<N>::Bits>(step);
    }

    template <int N, int>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Bits operand(typename Lanes<N>::Bits pairs) {
        return pairs;
    }

    template <int N>
    static WEIGHTPAGER_INLINE Sum<N> add(Sum<N> sum, typename Lanes<N>::Bits weights, Input x) {
        return dot<N>(sum, weights, x);
    }
};

#if defined(__AVX512BF16__)

// A block's numbers are exact in bfloat16; its sums are multiplied by the scales.
struct PairedInt4Weights : Bfloat16Weights {
    static constexpr bool scaled = true;
    static constexpr int inputs = 8, rows = 4, bytes = 4, row_bytes = 4;

    template <int N, int Row>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Bits operand(typename Lanes<N>::Bits words) {
        return bfloat16_of_int4<N, Row>(words);
    }
};

#endif

#else

struct FloatWeights : Unscaled {
    using Input = float;
    static constexpr int inputs = 2, rows = 2;

    template <int N>
    using Sum = typename Lanes<N>::Float;

    template <int N>
    static WEIGHTPAGER_INLINE Sum<N> add(Sum<N> sum, typename Lanes<N>::Float weights, Input x) {
        return sum + weights * x;
    }
};

struct Bfloat16Weights : FloatWeights {
    static constexpr int bytes = 4, row_bytes = 4;

    template <int N>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Bits read(const uint8_t* step, int64_t) {
        return load<typename Lanes<N>::Bits>(step);
    }

    template <int N, int Row>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Float operand(typename Lanes<N>::Bits pairs) {
        return reinterpret_cast<typename Lanes<N>::Float>(Row == 0 ? pairs << 16 : pairs & 0xffff0000u);
    }
};

// Keeps the two inputs of a step apart, `block_rows` floats from each other.
struct Float32Weights : FloatWeights {
    static constexpr int bytes = 8, row_bytes = 4;

    template <int N>
    struct Read {
        typename Lanes<N>::Float even, odd;
    };

    template <int N>
    static WEIGHTPAGER_INLINE Read<N> read(const uint8_t* step, int64_t block_rows) {
        using Float = typename Lanes<N>::Float;
        return {load<Float>(step), load<Float>(step + block_rows * 4)};
    }

    template <int N, int Row>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Float operand(const Read<N>& both) {
        return Row == 0 ? both.even : both.odd;
    }
};

#endif

struct IntegerWeights {
#if defined(__AVX512VNNI__)
    static constexpr bool waits = true;  // an instruction multiplies and adds
#else
    static constexpr bool waits = false;
#endif
    static constexpr bool scaled = true, integers = true;
    static constexpr int passes = 1, sums = 1, excess = 0;
    static constexpr int64_t most_tokens = INT64_MAX;
    using Input = uint32_t;  // a pair of int16

    template <int N>
    using Sum = typename Lanes<N>::Int;

    template <int N>
    static WEIGHTPAGER_INLINE Sum<N> add(Sum<N> sum, const IntegerPairs<N>& weights, Input x) {
        return multiply_add<N>(sum, weights, x);
    }
};

struct Int8Weights : IntegerWeights {
    static constexpr int inputs = 2, rows = 1, bytes = 2, row_bytes = 2;

    template <int N>
    static WEIGHTPAGER_INLINE IntegerPairs<N> read(const uint8_t* step, int64_t) {
        return read_integers<N>(step);
    }

    template <int N, int>
    static WEIGHTPAGER_INLINE const IntegerPairs<N>& operand(const IntegerPairs<N>& pairs) {
        return pairs;
    }
};

struct Int4Weights : IntegerWeights {
    static constexpr int inputs = 8, rows = 4, bytes = 4, row_bytes = 4;

    template <int N>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Bits read(const uint8_t* step, int64_t) {
        return load<typename Lanes<N>::Bits>(step) ^ 0x88888888u;
    }

    template <int N, int Row>
    static WEIGHTPAGER_INLINE IntegerPairs<N> operand(typename Lanes<N>::Bits words) {
        return pair_of_int4<N, Row>(words);
    }
};

// Sums of products with the activations' high bytes and with their low ones, where an instruction multiplies bytes. Up to
// `most_tokens`, as joining a block's sums takes longer than pairs do where many tokens share what is read; and up to
// `most_inputs` of a block, whose sums must fit into their numbers.
#if defined(__ARM_FEATURE_DOTPROD)
#define WEIGHTPAGER_DOTTED

// First with all high bytes, then with all low ones.
struct DottedInt4Weights : Int4Weights {
    static constexpr int64_t most_inputs = INT64_MAX;
    static constexpr bool waits = true;
    static constexpr int passes = 2, rows = 2;

    template <int N, int Row>
    static WEIGHTPAGER_INLINE int8x16_t operand(typename Lanes<N>::Bits words) {
        return bytes_of_int4<Row>(words);
    }

    template <int N>
    static WEIGHTPAGER_INLINE Sum<N> add(Sum<N> sum, int8x16_t weights, Input x) {
        return multiply_add_bytes(sum, weights, x);
    }
};

#elif defined(__AVX512VNNI__)
#define WEIGHTPAGER_DOTTED

// In one pass, of numbers as they are stored, from 0 to 15: a word's high halves count 16 times.
struct DottedInt4Weights : IntegerWeights {
    static constexpr int64_t most_tokens = 4, most_inputs = 4096;
    static constexpr int inputs = 8, rows = 4, bytes = 4, row_bytes = 4, sums = 4, excess = 8;

    template <int N>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Bits read(const uint8_t* step, int64_t) {
        return load<typename Lanes<N>::Bits>(step);
    }

    template <int N, int Row>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Bits operand(typename Lanes<N>::Bits words) {
        return words & (Row % 2 == 0 ? 0x0f0f0f0fu : 0xf0f0f0f0u);
    }

    template <int N>
    static WEIGHTPAGER_INLINE Sum<N> add(Sum<N> sum, typename Lanes<N>::Bits weights, Input x) {
        return multiply_add_bytes<N>(sum, weights, x);
    }

    // Of the high bytes' rows, and of the low ones'.
    template <class Int>
    static WEIGHTPAGER_INLINE Int joined(Int high, Int high_16, Int low, Int low_16) {
        return ((high + (high_16 >> 4)) << 8) + low + (low_16 >> 4);
    }
};

#elif defined(__AVX2__) && WEIGHTPAGER_LANES == 8
#define WEIGHTPAGER_DOTTED

// The same in int16: 32 inputs give eight products of two bytes to a sum, each of 15 * 128 * 2 at the most.
struct DottedInt4Weights : IntegerWeights {
    static constexpr int64_t most_tokens = 4, most_inputs = 32;
    static constexpr int inputs = 8, rows = 4, bytes = 4, row_bytes = 4, sums = 2, excess = 8;

    template <int N>
    using Sum = typename Lanes<N>::Short;

    template <int N>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Bits read(const uint8_t* step, int64_t) {
        return load<typename Lanes<N>::Bits>(step);
    }

    template <int N, int Row>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Bits operand(typename Lanes<N>::Bits words) {
        return (Row % 2 == 0 ? words : words >> 4) & 0x0f0f0f0fu;
    }

    template <int N>
    static WEIGHTPAGER_INLINE Sum<N> add(Sum<N> sum, typename Lanes<N>::Bits weights, Input x) {
        return multiply_add_pairs(sum, weights, x);
    }

    // Of the high bytes' rows, and of the low ones'.
    static WEIGHTPAGER_INLINE Lanes<8>::Int joined(Lanes<8>::Short high, Lanes<8>::Short low) {
        return (sum_pairs(high) << 8) + sum_pairs(low);
    }
};

#endif

}  // namespace
}  // namespace weightpager

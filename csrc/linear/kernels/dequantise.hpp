// int8 and int4 weights times their scales, rounded to bfloat16, in the layout of bfloat16 weights: with AVX-512 BF16.
#pragma once

#include <immintrin.h>

#include "lanes.hpp"
#include "linear/paged_linear.hpp"
#include "sweep.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

constexpr int kWidened = 16;  // outputs at once

// What belongs to 16 outputs, each twice: once for either input of a pair.
struct Twice {
    __m512 low, high;

    WEIGHTPAGER_INLINE explicit Twice(__m512 of) {
        const auto lanes = [](int first) {
            const __m512i lane = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
            return _mm512_add_epi32(lane, _mm512_set1_epi32(first));
        };
        low = _mm512_permutexvar_ps(lanes(0), of);
        high = _mm512_permutexvar_ps(lanes(8), of);
    }
};

// 16 pairs of numbers, those of eight outputs after those of the others, times their scales.
WEIGHTPAGER_INLINE void write_scaled(uint8_t* pairs, __m512 low, __m512 high, const Twice& scales) {
    const __m512bh scaled = _mm512_cvtne2ps_pbh(_mm512_mul_ps(high, scales.high), _mm512_mul_ps(low, scales.low));
    std::memcpy(pairs, &scaled, sizeof scaled);
}

// So many inputs of 16 outputs. From one pair of inputs to the next are `to_bytes` where they are written, and half of
// the bytes that the block has of a pair where they are read.
WEIGHTPAGER_INLINE void widen_int8(uint8_t* to, int64_t to_bytes, const uint8_t* from, int64_t from_bytes,
                                   int64_t inputs, const Twice& scales) {
    // GCC converts vectors of bytes one by one when it isn't told how.
    const auto half = [](const uint8_t* bytes) {
        return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load<__m128i>(bytes)));
    };
    for (int64_t pair = 0; pair < inputs / 2; ++pair, from += from_bytes, to += to_bytes)
        write_scaled(to, half(from), half(from + kWidened), scales);
}

// The same; a word holds four pairs, and from one to the next are `from_bytes`.
WEIGHTPAGER_INLINE void widen_int4(uint8_t* to, int64_t to_bytes, const uint8_t* from, int64_t from_bytes,
                                   int64_t inputs, const Twice& scales) {
    const __m512 numbers = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i either = _mm512_set1_epi64(int64_t{16} << 32);  // the even inputs' bits, then the odd ones'
    for (int64_t word = 0; word < inputs / 8; ++word, from += from_bytes) {
        const Twice words(load<__m512>(from));
        const __m512i low = _mm512_srlv_epi32((__m512i)words.low, either);
        const __m512i high = _mm512_srlv_epi32((__m512i)words.high, either);
        unroll<4>([&](auto pair) WEIGHTPAGER_INLINED {
            constexpr unsigned first_bit[] = {0, 8, 4, 12}, bit = first_bit[decltype(pair)::value];
            const auto half = [&](__m512i of) WEIGHTPAGER_INLINED {
                return _mm512_permutexvar_ps(_mm512_srli_epi32(of, bit), numbers);  // which looks at four bits
            };
            write_scaled(to, half(low), half(high), scales);
            to += to_bytes;
        });
    }
}

// `inputs` inputs of 16 outputs of a block, from these on.
template <Dtype Weights>
WEIGHTPAGER_INLINE void dequantise(const PagedMatrix& p, const BlockPlace& place, int64_t first_input,
                                   int64_t row_in_block, int64_t inputs, uint8_t* to, int64_t to_bytes) {
    const Twice scales((__m512)widen<kWidened>(place.scales + row_in_block));
    constexpr int64_t together = Weights == Dtype::int8 ? 2 : 8, bytes = together * (Weights == Dtype::int8 ? 8 : 4) / 8;
    const uint8_t* from = place.block + (first_input / together * p.block_rows + row_in_block) * bytes;
    if constexpr (Weights == Dtype::int8)
        widen_int8(to, to_bytes, from, p.block_rows * bytes, inputs, scales);
    else
        widen_int4(to, to_bytes, from, p.block_rows * bytes, inputs, scales);
}

template <Dtype Weights>
int64_t dequantise_row(const PagedMatrix& p, int64_t grid_row, uint8_t* to) {
    const int64_t end = p.crow_indices[grid_row + 1], kept = p.crow_indices[grid_rows(p)];
    const int64_t bytes = block_bytes(p), ahead = blocks_ahead(bytes);
    const Blocks blocks(p);
    for (int64_t k = p.crow_indices[grid_row]; k < end; ++k, to += 2 * p.block_rows * p.block_cols) {
        const BlockPlace place = blocks[k];
        if (place.block == nullptr) return p.locations[k] / p.blocks_per_page;
        const BlockPlace next = k + ahead < kept ? blocks[k + ahead] : BlockPlace{nullptr, nullptr};
        if (next.block != nullptr) {
            __builtin_prefetch(next.scales);
            fetch(next.block, bytes);
        }
        for (int64_t row = 0; row < p.block_rows; row += kWidened)
            dequantise<Weights>(p, place, 0, row, p.block_cols, to + row * 4, p.block_rows * 4);
    }
    return kAllResident;
}

// A `Kernel`'s function of this name.
int64_t dequantise_row(const PagedMatrix& p, int64_t grid_row, uint8_t* to) {
    return p.weight_dtype == Dtype::int8 ? dequantise_row<Dtype::int8>(p, grid_row, to)
                                         : dequantise_row<Dtype::int4>(p, grid_row, to);
}

}  // namespace
}  // namespace weightpager

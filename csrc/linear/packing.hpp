// The activations of a tile as its kernel wants them: see `Packing`.
#pragma once

#include "divide.hpp"
#include "paged_linear.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

// What is packed of one token at a time: a cache line.
constexpr int64_t kLine = 64 / sizeof(uint32_t);

constexpr int64_t kStepInputs = 8;  // at most

// 32-bit numbers of a token.
inline int64_t packed_rows(Packing packing, int64_t in_features) {
    if (packing == Packing::lines) return divide_up(in_features, kTileInputs) * kLine;
    // As many as a step of any weight needs.
    const int64_t inputs = divide_up(in_features, kStepInputs) * kStepInputs;
    return packing == Packing::floats ? inputs : inputs / 2;
}

}  // namespace

// Packs a tile's activations; `x_scales` of integers and bytes, too, and `x_sums` of bytes.
using Pack = void(Packing packing, const Problem& problem, const Tile& tile, uint32_t* packed, float* x_scales,
                  int32_t* x_sums);

// Every instruction set's (packing.cpp).
Pack pack_generic;
#if defined(WEIGHTPAGER_X86)
Pack pack_avx2, pack_avx512;
#endif

}  // namespace weightpager

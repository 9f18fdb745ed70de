// What every sweep does with a row of blocks besides multiplying: find its blocks, and write its outputs.
#pragma once

#include <algorithm>

#include "bfloat16.hpp"
#include "functions.hpp"
#include "lanes.hpp"
#include "linear/paged_linear.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

// How many outputs are accumulated at once: `Registers` registers of `N` floats.
template <int N_, int Registers_>
struct Outputs {
    static constexpr int N = N_, Registers = Registers_, count = N * Registers;
};

constexpr int64_t kBytesAhead = 4096;  // about what memory delivers while it is asked for more
constexpr int kIntoL2 = 2;              // which has room for more outstanding lines than L1: 34 GB/s instead of 24

inline int64_t blocks_ahead(int64_t bytes) { return bytes < kBytesAhead ? kBytesAhead / bytes : 1; }

// Where a block lies, or null if its page isn't resident.
struct BlockPlace {
    const uint8_t* block;
    const uint16_t* scales;  // [block_rows] bfloat16, in the trailer of a page whose dtype is scaled
};

// Finds blocks by their place among the kept ones.
class Blocks {
   public:
    explicit Blocks(const PagedMatrix& p)
        : p_(p),
          bytes_(static_cast<uint64_t>(block_bytes(p))),
          trailer_(static_cast<uint64_t>(p.blocks_per_page) * bytes_),
          per_page_(static_cast<uint32_t>(p.blocks_per_page)),
          reciprocal_((uint64_t{1} << 63) / per_page_ + 1) {}

    WEIGHTPAGER_INLINE BlockPlace operator[](int64_t kept) const {
        const auto location = static_cast<uint32_t>(p_.locations[kept]);
        const uint32_t page_index = divided(location), place = location - page_index * per_page_;
        const auto slot = static_cast<uint64_t>(int64_t{p_.page_table[page_index]});  // huge if negative
        if (slot >= static_cast<uint64_t>(p_.slots)) return {nullptr, nullptr};
        const uint8_t* page = p_.arena + slot * static_cast<uint64_t>(p_.page_bytes);
        const auto* trailer = reinterpret_cast<const uint16_t*>(page + trailer_);
        return {page + place * bytes_, trailer + place * static_cast<uint64_t>(p_.block_rows)};
    }

   private:
    // By `per_page_`: exact, as both are below 2^31.
    WEIGHTPAGER_INLINE uint32_t divided(uint32_t location) const {
        return static_cast<uint32_t>(static_cast<unsigned __int128>(reciprocal_) * location >> 63);
    }

    const PagedMatrix& p_;
    uint64_t bytes_, trailer_;
    uint32_t per_page_;
    uint64_t reciprocal_;
};

WEIGHTPAGER_INLINE void fetch(const uint8_t* from, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(from + line, 0, kIntoL2);
}

inline float bias_of(const Problem& p, int64_t output) {
    if (p.bias_dtype == Dtype::float32) return static_cast<const float*>(p.bias)[output];
    return from_bfloat16(static_cast<const uint16_t*>(p.bias)[output]);
}

template <int N>
WEIGHTPAGER_INLINE typename Lanes<N>::Float activated(typename Lanes<N>::Float x, Unary activation) {
    // Both are x times a sigmoid; gelu's tanh(z) is 2 sigmoid(2 z) - 1.
    const auto inner = activation == Unary::silu ? x : 1.5957691216f * (x + 0.044715f * x * x * x);
    return x / (1.0f + exponential<N>(-inner));
}

// Finishes the outputs of a tile's tokens, and writes them. One function for all widths and weights, which is called
// once a row of blocks: inlined, it was half of the code.
template <class Out>
__attribute__((noinline)) void store(const Problem& p, const Tile& tile, int64_t first_output, int64_t row_in_block,
                                     const typename Lanes<Out::N>::Float (*total)[Out::Registers]) {
    using L = Lanes<Out::N>;
    const int64_t left = p.out_features - first_output;
    const int outputs = left < Out::count ? static_cast<int>(left) : Out::count;
    float bias[Out::count] = {};
    if (p.bias != nullptr)
        for (int o = 0; o < outputs; ++o) bias[o] = bias_of(p, first_output + o);
    // Most often nothing is to be done with them, and there are many tokens for the few blocks of a row.
    const bool as_they_are = tile.gate_out == nullptr && tile.gate == nullptr && p.epilogue == Unary::none;
    if (as_they_are && outputs == Out::count && p.dtype == Dtype::float32) {
        for (int t = 0; t < tile.tokens; ++t) {
            const int64_t at = (tile.first_token + t) * p.out_features + first_output;
            float* const to = static_cast<float*>(p.y) + at;
            for (int r = 0; r < Out::Registers; ++r) {
                auto value = total[t][r] + load<typename L::Float>(bias + r * Out::N);
                if (p.addend != nullptr) value += load<typename L::Float>(p.addend + at + r * Out::N);
                std::memcpy(to + r * Out::N, &value, sizeof value);
            }
        }
        return;
    }
    for (int t = 0; t < tile.tokens; ++t) {
        const int64_t at = (tile.first_token + t) * p.out_features + first_output;
        for (int r = 0; r < Out::Registers; ++r) {
            const int rest = outputs - r * Out::N;
            if (rest <= 0) break;
            auto value = total[t][r] + load<typename L::Float>(bias + r * Out::N);
            if (p.addend != nullptr) {
                float addend[Out::N] = {};
                std::copy_n(p.addend + at + r * Out::N, rest < Out::N ? rest : Out::N, addend);
                value += load<typename L::Float>(addend);
            }
            const int64_t in_block = t * p.block_rows + row_in_block + r * Out::N;
            if (tile.gate_out != nullptr) {
                std::memcpy(tile.gate_out + in_block, &value, sizeof value);
                continue;
            }
            if (tile.gate != nullptr)
                value *= activated<Out::N>(load<typename L::Float>(tile.gate + in_block), tile.activation);
            if (p.epilogue != Unary::none) value = finished<Out::N>(p.epilogue, value);
            const size_t written = rest < Out::N ? static_cast<size_t>(rest) : size_t{Out::N};
            if (p.dtype == Dtype::float32) {
                std::memcpy(static_cast<float*>(p.y) + at + r * Out::N, &value, written * sizeof(float));
            } else {
                const auto halves = narrow<Out::N>(value);
                auto* to = static_cast<uint16_t*>(p.y) + at + r * Out::N;
                if (written == Out::N)
                    std::memcpy(to, &halves, sizeof halves);
                else
                    std::memcpy(to, &halves, written * sizeof(uint16_t));
            }
        }
    }
}

}  // namespace
}  // namespace weightpager

// y[T, O] = x[T, I] . W^T + bias for a weight that is cut into blocks, in pages, in slots of an arena.
//
// Every instruction set brings a `Kernel` (kernels/kernel.cpp, compiled once for each); `paged_linear` splits the work.
#pragma once

#include <cstdint>
#include <vector>

#include "divide.hpp"
#include "dtype.hpp"
#include "unary.hpp"

namespace weightpager {

// A weight: plain memory, owned by the caller and already validated, except for `page_table`, whose entries change
// between calls.
struct PagedMatrix {
    const uint8_t* arena;         // [slots, page_bytes]
    const int32_t* page_table;    // [pages], slot or anything outside [0, slots) where absent
    const int32_t* crow_indices;  // [grid_rows + 1]
    const int32_t* col_indices;   // [kept]
    const int32_t* locations;     // [kept], page * blocks_per_page + place
    int64_t slots, page_bytes, blocks_per_page;
    int64_t out_features, in_features;
    int64_t block_rows, block_cols;
    Dtype weight_dtype;
};

// One call; its memory, too, is the caller's and has been validated.
struct Problem : PagedMatrix {
    const void* x;  // [tokens, in_features]
    void* y;        // [tokens, out_features]
    Dtype dtype;    // of x and y: float32 or bfloat16
    int64_t tokens;
    const void* bias = nullptr;         // [out_features] or null
    Dtype bias_dtype = Dtype::float32;  // or bfloat16
    Unary epilogue = Unary::none;       // what is done with the outputs
    const float* addend = nullptr;      // [tokens, out_features] or null: what is added to them before
};

namespace {  // as in bfloat16.hpp, and for the same reason

inline int64_t grid_rows(const PagedMatrix& p) { return divide_up(p.out_features, p.block_rows); }

inline int64_t block_bytes(const PagedMatrix& p) { return p.block_rows * p.block_cols * element_bits(p.weight_dtype) / 8; }

}  // namespace

// How a kernel wants the activations of a tile: for every input a float32 of each token; for every pair of inputs a pair
// of bfloat16 of each token; for every `kTileInputs` inputs a line of bfloat16 of each token; or for every pair of inputs
// a pair of int16 of each token, with a scale for the inputs of a column of blocks. Bytes are these as 256 high + low, for
// every eight inputs four rows of four bytes of each token: the high ones of inputs 0, 2, 1, 3 and of 4, 6, 5, 7, as words
// of int4 have them, and the low ones; with the sum of the whole numbers of a column of blocks.
enum class Packing : int { floats, pairs, lines, integers, bytes };
constexpr int64_t kTileInputs = 32;

// Tokens are worked on in tiles: `width` columns of which the first `tokens` are real.
struct Tile {
    const void* x;  // [inputs, width], [pairs, width] or [lines, width, 32], zero where padded
    int64_t first_token;
    int tokens, width;
    bool first;  // of those that a row of blocks is swept for
    const float* x_scales;  // of integers and bytes: [columns of blocks, width]
    const int32_t* x_sums;  // of bytes: the same

    // Of a gated layer, float32 [tokens, block_rows]: where the gate's outputs go, in place of y, and whence they come
    // when the other weight's are multiplied with them.
    float* gate_out = nullptr;
    const float* gate = nullptr;
    Unary activation = Unary::none;  // of the gate: silu or gelu_tanh
};

constexpr int64_t kAllResident = -1;
constexpr int kWidestTile = 96;

struct Kernel {
    const char* name;
    Packing packing;
    int widest;                // tokens in a full tile
    int (*width)(int tokens);  // of the narrowest tile that holds them
    // Writes one row of blocks for one tile. Returns `kAllResident` or the index of a page that isn't.
    int64_t (*sweep)(const Problem& problem, const Tile& tile, int64_t grid_row);
    bool (*supports)(const Problem& problem);  // whether it computes this exactly enough, and well
    const Kernel* fallback;                    // serves what this one doesn't support; the last supports everything

    // Null, or writes a row of blocks that are scaled as blocks of bfloat16 that this kernel takes too, one after the
    // other; returns as `sweep` does. Pays from so many tokens on; blocks have a multiple of 16 rows.
    int64_t (*dequantise_row)(const PagedMatrix& weight, int64_t grid_row, uint8_t* to);
    int64_t least_tokens;
};

// What this machine can run, best first; never empty.
const std::vector<const Kernel*>& kernels();

// The kernel itself, or the first of its fallbacks that supports the problem.
const Kernel& suitable(const Kernel& kernel, const Problem& problem);

// Returns `kAllResident`, or the index of a page that isn't resident; `y` is then partly written.
// The result does not depend on `threads`.
int64_t paged_linear(const Kernel& kernel, const Problem& problem, int threads);

// y = activation(x . gate^T + gate bias) * (x . W^T + bias), where `gate` and `problem` have the same x and shape.
// The activation is silu or gelu_tanh. Returns as `paged_linear` does.
int64_t paged_gated(const Kernel& kernel, const Problem& gate, const Problem& problem, Unary activation, int threads);

}  // namespace weightpager

// The kernel for AMX: tiles of 16 tokens times blocks of 16 outputs and 32 inputs, which is what a tile register holds.
//
// Few tokens leave the tiles empty, the fewer of them the cheaper weights are to read otherwise, and other blocks don't fit
// them: those go to the kernel for pairs of bfloat16.

#include <immintrin.h>

#include "amx_tiles.hpp"
#include "dequantise.hpp"
#include "divide.hpp"
#include "lanes.hpp"
#include "linear/paged_linear.hpp"
#include "sweep.hpp"
#include "text.hpp"

namespace weightpager {
namespace {

constexpr int kTokens = 16, kOutputs = 16, kGroups = 6;
constexpr int kWidest = kTokens * kGroups;
constexpr int64_t kLineBytes = 64;       // of a tile's row
constexpr int64_t kLeastTokens = 5, kLeastScaled = kTokens;  // of int8 and int4 weights, which must be widened first
constexpr int64_t kLeastDequantised = kWidest + 1;  // tokens: for more than one tile
using Out = Outputs<kOutputs, 1>;

// Tile registers have numbers in the instruction itself: 0 to 5 sum up a group of tokens each.
#define WEIGHTPAGER_X 6
#define WEIGHTPAGER_W 7
#define WEIGHTPAGER_EACH_GROUP(each) each(0) each(1) each(2) each(3) each(4) each(5)

struct Totals {
    alignas(64) float of[kTokens][kOutputs];
};

// Loads 32 inputs of 16 outputs.
template <Dtype Weights>
WEIGHTPAGER_INLINE void load_weights(const PagedMatrix& p, const BlockPlace& place, int64_t first_input,
                                     int64_t row_in_block) {
    if constexpr (Weights == Dtype::bfloat16) {
        const uint8_t* from = place.block + (first_input / 2 * p.block_rows + row_in_block) * 4;
        WEIGHTPAGER_TILE_LOAD(WEIGHTPAGER_W, from, p.block_rows * 4);
    } else {
        alignas(64) uint8_t pairs[kTileInputs / 2 * kLineBytes];
        dequantise<Weights>(p, place, first_input, row_in_block, kTileInputs, pairs, kLineBytes);
        WEIGHTPAGER_TILE_LOAD(WEIGHTPAGER_W, pairs, kLineBytes);
    }
}

template <int Groups>
WEIGHTPAGER_INLINE void multiply(const uint8_t* x) {
#define WEIGHTPAGER_MULTIPLY(group)                                                          \
    if constexpr (group < Groups) {                                                          \
        WEIGHTPAGER_TILE_LOAD(WEIGHTPAGER_X, x + group * kTokens * kLineBytes, kLineBytes);  \
        WEIGHTPAGER_TILE_DOT(group, WEIGHTPAGER_X, WEIGHTPAGER_W);                           \
    }
    WEIGHTPAGER_EACH_GROUP(WEIGHTPAGER_MULTIPLY)
#undef WEIGHTPAGER_MULTIPLY
}

template <int Groups>
WEIGHTPAGER_INLINE void clear() {
#define WEIGHTPAGER_CLEAR(group) \
    if constexpr (group < Groups) { WEIGHTPAGER_TILE_ZERO(group); }
    WEIGHTPAGER_EACH_GROUP(WEIGHTPAGER_CLEAR)
#undef WEIGHTPAGER_CLEAR
}

template <int Groups>
WEIGHTPAGER_INLINE void read_totals(Totals (&totals)[Groups]) {
#define WEIGHTPAGER_READ(group) \
    if constexpr (group < Groups) { WEIGHTPAGER_TILE_STORE(group, totals[group].of, kLineBytes); }
    WEIGHTPAGER_EACH_GROUP(WEIGHTPAGER_READ)
#undef WEIGHTPAGER_READ
}

// The tokens of one group, as a tile of their own.
Tile group_of(const Problem& p, const Tile& tile, int group) {
    Tile part = tile;
    const int before = group * kTokens, left = tile.tokens - before;
    part.first_token += before;
    part.tokens = left < 0 ? 0 : left < kTokens ? left : kTokens;
    if (tile.gate != nullptr) part.gate += before * p.block_rows;
    if (tile.gate_out != nullptr) part.gate_out += before * p.block_rows;
    return part;
}

template <Dtype Weights, int Groups>
int64_t sweep_outputs(const Problem& p, const Tile& tile, int64_t grid_row, int64_t row_in_block) {
    const int64_t first_output = grid_row * p.block_rows + row_in_block;
    if (first_output >= p.out_features) return kAllResident;
    const int64_t end = p.crow_indices[grid_row + 1], kept = p.crow_indices[grid_rows(p)];
    const int64_t bytes = block_bytes(p), ahead = blocks_ahead(bytes);
    const bool fetches = tile.first && row_in_block == 0;
    const Blocks blocks(p);

    clear<Groups>();
    for (int64_t k = p.crow_indices[grid_row]; k < end; ++k) {
        const BlockPlace place = blocks[k];
        if (place.block == nullptr) return p.locations[k] / p.blocks_per_page;
        const BlockPlace next = fetches && k + ahead < kept ? blocks[k + ahead] : BlockPlace{nullptr, nullptr};
        if (next.block != nullptr) fetch(next.block, bytes);
        for (int64_t input = 0; input < p.block_cols; input += kTileInputs) {
            const int64_t first_input = p.col_indices[k] * p.block_cols + input;
            if (first_input >= p.in_features) break;
            load_weights<Weights>(p, place, input, row_in_block);
            multiply<Groups>(static_cast<const uint8_t*>(tile.x) + first_input / kTileInputs * tile.width * kLineBytes);
        }
    }
    Totals totals[Groups];
    read_totals<Groups>(totals);
    for (int group = 0; group < Groups; ++group) {
        Lanes<kOutputs>::Float total[kTokens][1];
        std::memcpy(total, totals[group].of, sizeof total);
        store<Out>(p, group_of(p, tile, group), first_output, row_in_block, total);
    }
    return kAllResident;
}

template <int Groups>
int64_t sweep_groups(const Problem& p, const Tile& tile, int64_t grid_row) {
    const auto outputs = p.weight_dtype == Dtype::int8   ? sweep_outputs<Dtype::int8, Groups>
                         : p.weight_dtype == Dtype::int4 ? sweep_outputs<Dtype::int4, Groups>
                                                         : sweep_outputs<Dtype::bfloat16, Groups>;
    for (int64_t row = 0; row < p.block_rows; row += kOutputs) {
        const int64_t missing = outputs(p, tile, grid_row, row);
        if (missing != kAllResident) return missing;
    }
    return kAllResident;
}

int width(int tokens) { return divide_up(tokens, kTokens) * kTokens; }

int64_t sweep(const Problem& p, const Tile& tile, int64_t grid_row) {
    int64_t missing = kAllResident;
    WEIGHTPAGER_TILE_CONFIGURE();
    unroll<kGroups>([&](auto i) {
        constexpr int Groups = decltype(i)::value + 1;
        if (tile.width == Groups * kTokens) missing = sweep_groups<Groups>(p, tile, grid_row);
    });
    WEIGHTPAGER_TILE_RELEASE();
    return missing;
}

bool supports(const Problem& p) {
    return p.dtype == Dtype::bfloat16 && p.weight_dtype != Dtype::float32 &&
           p.tokens >= (scaled(p.weight_dtype) ? kLeastScaled : kLeastTokens) &&
           p.block_rows % kOutputs == 0 && p.block_cols % kTileInputs == 0;
}

}  // namespace

extern const Kernel avx512_bf16;
extern const Kernel WEIGHTPAGER_KERNEL;
const Kernel WEIGHTPAGER_KERNEL = {
    WEIGHTPAGER_TEXT(WEIGHTPAGER_KERNEL), Packing::lines, kWidest, width, sweep, supports, &avx512_bf16, dequantise_row,
    kLeastDequantised};

}  // namespace weightpager

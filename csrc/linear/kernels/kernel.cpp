// The micro-kernel: compiled once per instruction set, with WEIGHTPAGER_KERNEL (the symbol to define),
// WEIGHTPAGER_LANES (floats in a register), WEIGHTPAGER_WIDEST (tokens in a full tile) and, where the processor
// multiplies pairs of bfloat16, WEIGHTPAGER_EXACT (the kernel for what isn't bfloat16) set by the build.
//
// Nothing here may have external linkage but WEIGHTPAGER_KERNEL, not even an inline function of the standard
// library: the linker could give every instruction set the copy that only the newest processors can run.

#include <cstddef>

#include "accumulators.hpp"
#include "divide.hpp"
#include "lanes.hpp"
#include "linear/paged_linear.hpp"
#include "stored_weights.hpp"
#include "sweep.hpp"
#include "text.hpp"

#if defined(__AVX512BF16__)
#include "dequantise.hpp"
#endif

namespace weightpager {
namespace {

constexpr int kLanes = WEIGHTPAGER_LANES, kHalfLanes = kLanes < 8 ? kLanes : 8;

// How far from a block the one is that is fetched meanwhile. Blocks that follow each other in a row lie anywhere in
// memory: the hardware can't foresee the next.
template <class Weights>
WEIGHTPAGER_INLINE int64_t distance_ahead(const Blocks& blocks, const BlockPlace& place, int64_t then, int64_t kept,
                                          int64_t row_in_block) {
    BlockPlace next = then < kept ? blocks[then] : place;
    if (next.block == nullptr) next = place;  // from null, even the address of a prefetch isn't defined
    if constexpr (Weights::scaled) __builtin_prefetch(next.scales + row_in_block);
    return next.block - place.block;
}

// Multiplies some rows of a block, of so many steps. `fetched` bytes a step are fetched, `distance` from it.
template <class Weights, class Out, int Width>
WEIGHTPAGER_INLINE void multiply_block(Accumulators<Weights, Out, Width>& sums, const uint8_t* rows, int64_t block_rows,
                                       const typename Weights::Input* inputs, int64_t steps, int64_t fetched,
                                       int64_t distance) {
    constexpr int pass_width = Width * Weights::rows, width = pass_width * Weights::passes;
    const int64_t step_bytes = Weights::bytes * block_rows;
    for (int pass = 0; pass < Weights::passes; ++pass) {
        const typename Weights::Input* x = inputs + pass * pass_width;
        const uint8_t* step = rows;
        if constexpr (Weights::passes > 1)
            if (pass > 0) sums.each([](auto& one) WEIGHTPAGER_INLINED { one = one * 256; });
        int64_t left = steps;
        if constexpr (!Weights::waits) {
            fetch(step + distance, left * fetched);
        } else {  // two at once, for the chains; where there is one, that would only take registers from the sums
            for (; left >= 2; left -= 2) {
                fetch(step + distance, 2 * fetched);
                sums.template add<0>(step, block_rows, x);
                sums.template add<1>(step + step_bytes, block_rows, x + width);
                step += 2 * step_bytes;
                x += 2 * width;
            }
        }
        for (; left > 0; --left) {
            sums.template add<0>(step, block_rows, x);
            step += step_bytes;
            x += width;
        }
    }
}

// Adds a block's sums: they are at the scale of its rows, whole numbers also at that of the activations that they met.
template <class Weights, class Out, int Width>
WEIGHTPAGER_INLINE void add_scaled(const Accumulators<Weights, Out, Width>& sums, const uint16_t* row_scales,
                                   const Tile& tile, int64_t grid_col,
                                   typename Lanes<Out::N>::Float (&total)[Width][Out::Registers]) {
    using Float = typename Lanes<Out::N>::Float;
    const float* x_scales = Weights::integers ? tile.x_scales + grid_col * Width : nullptr;
    const int32_t* x_sums = Weights::excess != 0 ? tile.x_sums + grid_col * Width : nullptr;
    Float scales[Out::Registers];
    for (int r = 0; r < Out::Registers; ++r) scales[r] = widen<Out::N>(row_scales + r * Out::N);
    sums.totals([&](int t, int r, const auto& sum) WEIGHTPAGER_INLINED {
        Float& to = total[t][r];
        if constexpr (Weights::excess != 0)
            to = fused<Out::N>(__builtin_convertvector(sum - Weights::excess * x_sums[t], Float), scales[r] * x_scales[t], to);
        else if constexpr (Weights::integers)
            to = fused<Out::N>(__builtin_convertvector(sum, Float), scales[r] * x_scales[t], to);
        else
            to = fused<Out::N>(sum, scales[r], to);
    });
}

// Stores a copy: numbers whose address is given away stay in memory, also while they are summed up.
template <class Out, int Width, int... I>
WEIGHTPAGER_INLINE void store_copy(const Problem& p, const Tile& tile, int64_t first_output, int64_t row_in_block,
                                   const typename Lanes<Out::N>::Float (&total)[Width][Out::Registers],
                                   std::integer_sequence<int, I...>) {
    constexpr int Registers = Out::Registers;
    const typename Lanes<Out::N>::Float copy[Width][Registers] = {total[I / Registers][I % Registers]...};
    store<Out>(p, tile, first_output, row_in_block, copy);
}

template <class Weights, class Out, int Width>
int64_t sweep_outputs(const Problem& p, const Tile& tile, int64_t grid_row, int64_t row_in_block) {
    const int64_t first_output = grid_row * p.block_rows + row_in_block;
    if (first_output >= p.out_features) return kAllResident;
    const int64_t end = p.crow_indices[grid_row + 1], kept = p.crow_indices[grid_rows(p)];
    const int64_t block_rows = p.block_rows, ahead = blocks_ahead(block_bytes(p));
    const int64_t all_steps = p.block_cols / Weights::inputs;  // of a block that no edge cuts
    const int64_t last_col = static_cast<uint32_t>(p.in_features - 1) / static_cast<uint32_t>(p.block_cols);
    const int64_t last_steps = divide_up(p.in_features - last_col * p.block_cols, Weights::inputs);
    // The first to see a row of blocks fetches all of it; then it is in the cache.
    const int64_t fetched = tile.first && row_in_block == 0 ? Weights::bytes * block_rows : 0;
    const int64_t block_inputs = all_steps * Width * Weights::rows * Weights::passes;
    const Blocks blocks(p);

    Accumulators<Weights, Out, Width> sums;
    typename Lanes<Out::N>::Float total[Width][Out::Registers] = {};
    for (int64_t k = p.crow_indices[grid_row]; k < end; ++k) {
        const BlockPlace place = blocks[k];
        if (place.block == nullptr) return p.locations[k] / p.blocks_per_page;
        const int64_t distance = tile.first ? distance_ahead<Weights>(blocks, place, k + ahead, kept, row_in_block) : 0;
        const int64_t col = p.col_indices[k], steps = col == last_col ? last_steps : all_steps;
        const auto* x = static_cast<const typename Weights::Input*>(tile.x) + col * block_inputs;
        multiply_block(sums, place.block + row_in_block * Weights::row_bytes, block_rows, x, steps, fetched, distance);
        if constexpr (Weights::scaled) {
            add_scaled(sums, place.scales + row_in_block, tile, col, total);
            sums.clear();
        }
    }
    if constexpr (!Weights::scaled)
        sums.totals([&](int t, int r, const auto& sum) WEIGHTPAGER_INLINED { total[t][r] = sum; });
    store_copy<Out>(p, tile, first_output, row_in_block, total, std::make_integer_sequence<int, Width * Out::Registers>{});
    return kAllResident;
}

template <class Weights, class Out, int Width>
int64_t sweep_rows(const Problem& p, const Tile& tile, int64_t grid_row) {
    for (int64_t row = 0; row < p.block_rows; row += Out::count) {
        const int64_t missing = sweep_outputs<Weights, Out, Width>(p, tile, grid_row, row);
        if (missing != kAllResident) return missing;
    }
    return kAllResident;
}

// As many outputs at once as the block has rows and the registers have room for: a block is then read in one go.
template <class Weights, int Width>
int64_t sweep_weights(const Problem& p, const Tile& tile, int64_t grid_row) {
    constexpr int sixteen = 16 / kLanes, sums = Width * Weights::sums;  // of an output
    constexpr bool room_for_four = kLanes == 16 && sums <= 4, room_for_two = kLanes == 16 && sums <= 12;
    if constexpr (room_for_four)
        if (p.block_rows >= 64) return sweep_rows<Weights, Outputs<kLanes, 4>, Width>(p, tile, grid_row);
    if constexpr (room_for_two)
        if (p.block_rows >= 32) return sweep_rows<Weights, Outputs<kLanes, 2>, Width>(p, tile, grid_row);
    if (p.block_rows >= 16) return sweep_rows<Weights, Outputs<kLanes, sixteen>, Width>(p, tile, grid_row);
    return sweep_rows<Weights, Outputs<kHalfLanes, 8 / kHalfLanes>, Width>(p, tile, grid_row);
}

constexpr int kWidest = WEIGHTPAGER_WIDEST;
#if defined(WEIGHTPAGER_FEW_WIDTHS)  // sanitizers take minutes to compile the others; these have all that there is
constexpr int kWidths[] = {1, 2, WEIGHTPAGER_WIDEST};
#else
constexpr int kWidths[] = {1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28};
#endif
static_assert(kWidest <= kWidestTile);

int width(int tokens) {
    for (int candidate : kWidths)
        if (candidate >= tokens) return candidate;
    return kWidest;
}

// Whether a tile of weights can have this width; what can't happen isn't compiled.
template <class Weights>
constexpr bool has_width(int i) {
    return kWidths[i] <= kWidest && (i == 0 || kWidths[i - 1] < Weights::most_tokens);
}

template <class Weights>
int64_t sweep(const Problem& p, const Tile& tile, int64_t grid_row) {
    int64_t missing = kAllResident;
    unroll<sizeof kWidths / sizeof *kWidths>([&](auto i) WEIGHTPAGER_INLINED {
        constexpr int I = decltype(i)::value;
        if constexpr (has_width<Weights>(I))
            if (kWidths[I] == tile.width) missing = sweep_weights<Weights, kWidths[I]>(p, tile, grid_row);
    });
    return missing;
}

constexpr const char* kName = WEIGHTPAGER_TEXT(WEIGHTPAGER_KERNEL);

bool has_scales(const Problem& p) { return scaled(p.weight_dtype); }

int64_t sweep_integers(const Problem& p, const Tile& tile, int64_t grid_row) {
    return p.weight_dtype == Dtype::int8 ? sweep<Int8Weights>(p, tile, grid_row) : sweep<Int4Weights>(p, tile, grid_row);
}

#if defined(WEIGHTPAGER_DOTTED)
bool is_dotted(const Problem& p) {
    using Weights = DottedInt4Weights;
    return p.weight_dtype == Dtype::int4 && p.tokens <= Weights::most_tokens && p.block_cols <= Weights::most_inputs;
}
#endif

#if defined(WEIGHTPAGER_EXACT)

}  // namespace
extern const Kernel WEIGHTPAGER_EXACT;
namespace {

constexpr const Kernel* kExact = &WEIGHTPAGER_EXACT;

constexpr Packing kPacking = Packing::pairs;

int64_t sweep_floats(const Problem& p, const Tile& tile, int64_t grid_row) {
#if defined(__AVX512BF16__)
    if (p.weight_dtype == Dtype::int4) return sweep<PairedInt4Weights>(p, tile, grid_row);
#endif
    return sweep<Bfloat16Weights>(p, tile, grid_row);
}

#if defined(__AVX512BF16__)
constexpr int64_t kMostIntegers = 12;  // tokens up to which whole numbers are faster than numbers from a table
#endif

bool supports(const Problem& p) {
#if defined(__AVX512BF16__)
    if (p.dtype == Dtype::bfloat16 && p.weight_dtype == Dtype::int4) return p.tokens > kMostIntegers;
#endif
    return p.dtype == Dtype::bfloat16 && p.weight_dtype == Dtype::bfloat16;
}

#else

constexpr const Kernel* kExact = nullptr;
constexpr Packing kPacking = Packing::floats;

int64_t sweep_floats(const Problem& p, const Tile& tile, int64_t grid_row) {
    if (p.weight_dtype == Dtype::float32) return sweep<Float32Weights>(p, tile, grid_row);
    return sweep<Bfloat16Weights>(p, tile, grid_row);
}

bool supports(const Problem& p) { return !has_scales(p); }

#endif

#if defined(__AVX512BF16__)
constexpr auto kDequantiseRow = static_cast<int64_t (*)(const PagedMatrix&, int64_t, uint8_t*)>(dequantise_row);
#else
constexpr std::nullptr_t kDequantiseRow = nullptr;
#endif
constexpr int64_t kLeastDequantised = 40;  // tokens

const Kernel integers = {kName, Packing::integers, kWidest, width, sweep_integers, has_scales, kExact, nullptr, 0};

#if defined(WEIGHTPAGER_DOTTED)
const Kernel rounded = {kName, Packing::bytes, kWidest, width, sweep<DottedInt4Weights>, is_dotted, &integers, nullptr, 0};
#else
const Kernel& rounded = integers;
#endif

}  // namespace

extern const Kernel WEIGHTPAGER_KERNEL;
const Kernel WEIGHTPAGER_KERNEL = {
    kName, kPacking, kWidest, width, sweep_floats, supports, &rounded, kDequantiseRow, kLeastDequantised};

}  // namespace weightpager

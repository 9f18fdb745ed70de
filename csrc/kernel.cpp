// The micro-kernel: compiled once per instruction set, with WEIGHTPAGER_KERNEL (the symbol to define),
// WEIGHTPAGER_LANES (floats in a register) and WEIGHTPAGER_WIDEST (tokens in a full tile) set by the build.
//
// Nothing here may have external linkage but WEIGHTPAGER_KERNEL, not even an inline function of the standard
// library: the linker could give every instruction set the copy that only the newest processors can run.

#include "bfloat16.hpp"
#include "lanes.hpp"
#include "paged_linear.hpp"

#define WEIGHTPAGER_TEXT_OF(name) #name
#define WEIGHTPAGER_TEXT(name) WEIGHTPAGER_TEXT_OF(name)

namespace weightpager {
namespace {

// How many outputs are accumulated at once: `Registers` registers of `N` floats.
template <int N_, int Registers_>
struct Outputs {
    static constexpr int N = N_, Registers = Registers_, count = N * Registers;
};

constexpr int kLanes = WEIGHTPAGER_LANES, kHalfLanes = kLanes < 8 ? kLanes : 8;
using SixteenOutputs = Outputs<kLanes, 16 / kLanes>;
using EightOutputs = Outputs<kHalfLanes, 8 / kHalfLanes>;

// A step is two input features: what a block holds of them for some outputs, as two float vectors.

struct PairsOfBfloat16 {
    static int64_t step_bytes(int64_t block_rows) { return block_rows * 4; }

    template <int N>
    static WEIGHTPAGER_INLINE void read(const uint8_t* step, int64_t, typename Lanes<N>::Float& even,
                                        typename Lanes<N>::Float& odd) {
        using Bits = typename Lanes<N>::Bits;
        const Bits pairs = load<Bits>(step);
        even = reinterpret_cast<typename Lanes<N>::Float>(pairs << 16);
        odd = reinterpret_cast<typename Lanes<N>::Float>(pairs & 0xffff0000u);
    }

    static WEIGHTPAGER_INLINE void prefetch(const uint8_t* step, int64_t) { __builtin_prefetch(step); }
};

struct ColumnsOfFloat32 {
    static int64_t step_bytes(int64_t block_rows) { return block_rows * 8; }

    template <int N>
    static WEIGHTPAGER_INLINE void read(const uint8_t* step, int64_t block_rows, typename Lanes<N>::Float& even,
                                        typename Lanes<N>::Float& odd) {
        even = load<typename Lanes<N>::Float>(step);
        odd = load<typename Lanes<N>::Float>(step + block_rows * 4);
    }

    static WEIGHTPAGER_INLINE void prefetch(const uint8_t* step, int64_t block_rows) {
        __builtin_prefetch(step);
        __builtin_prefetch(step + block_rows * 4);
    }
};

// Several chains per output where few outputs are in flight, so that one addition needn't wait for the last.
// The order of additions thus depends on the tile's width, but on nothing else.
template <class Out, int Width>
struct Accumulators {
    static constexpr int in_flight = Out::Registers * Width;
    static constexpr int chains = in_flight >= 8 ? 1 : in_flight >= 4 ? 2 : 4;
    using Float = typename Lanes<Out::N>::Float;

    Float sum[chains][Width][Out::Registers] = {};

    template <class Weights, int Chain>
    WEIGHTPAGER_INLINE void add(const uint8_t* step, int64_t block_rows, const float* x) {
        unroll<Out::Registers>([&](auto r) {
            constexpr int R = decltype(r)::value;
            Float even, odd;
            Weights::template read<Out::N>(step + R * Out::N * 4, block_rows, even, odd);
            unroll<Width>([&](auto t) {
                constexpr int T = decltype(t)::value;
                sum[Chain % chains][T][R] += even * x[T];
                sum[(Chain + 1) % chains][T][R] += odd * x[Width + T];
            });
        });
    }

    void total(float (&out)[Width][Out::count]) const {
        for (int t = 0; t < Width; ++t)
            for (int r = 0; r < Out::Registers; ++r) {
                Float all = sum[0][t][r];
                for (int chain = 1; chain < chains; ++chain) all += sum[chain][t][r];
                std::memcpy(&out[t][r * Out::N], &all, sizeof all);
            }
    }
};

// Where a block lies, or null if its page isn't resident.
WEIGHTPAGER_INLINE const uint8_t* find_block(const Problem& p, int64_t bytes, int64_t kept) {
    const uint32_t location = static_cast<uint32_t>(p.locations[kept]);
    const uint32_t per_page = static_cast<uint32_t>(p.blocks_per_page);
    const int64_t slot = p.page_table[location / per_page];
    if (slot < 0 || slot >= p.slots) return nullptr;
    return p.arena + slot * p.page_bytes + (location % per_page) * bytes;
}

inline float bias_of(const Problem& p, int64_t output) {
    if (p.bias == nullptr) return 0.0f;
    if (p.bias_dtype == Dtype::float32) return static_cast<const float*>(p.bias)[output];
    return from_bfloat16(static_cast<const uint16_t*>(p.bias)[output]);
}

template <int Width, int Count>
void store(const Problem& p, const Tile& tile, int64_t first_output, const float (&total)[Width][Count]) {
    const int64_t left = p.out_features - first_output;
    const int outputs = left < Count ? static_cast<int>(left) : Count;
    float bias[Count];
    for (int o = 0; o < outputs; ++o) bias[o] = bias_of(p, first_output + o);
    for (int t = 0; t < tile.tokens; ++t) {
        const int64_t at = (tile.first_token + t) * p.out_features + first_output;
        if (p.dtype == Dtype::float32)
            for (int o = 0; o < outputs; ++o) static_cast<float*>(p.y)[at + o] = total[t][o] + bias[o];
        else
            for (int o = 0; o < outputs; ++o)
                static_cast<uint16_t*>(p.y)[at + o] = to_bfloat16(total[t][o] + bias[o]);
    }
}

constexpr int64_t kBlocksAhead = 2;

template <class Weights, class Out, int Width>
int64_t sweep_outputs(const Problem& p, const Tile& tile, int64_t grid_row, int64_t row_in_block) {
    const int64_t first_output = grid_row * p.block_rows + row_in_block;
    if (first_output >= p.out_features) return kAllResident;
    const int64_t end = p.crow_indices[grid_row + 1], kept = p.crow_indices[grid_rows(p)];
    const int64_t bytes = block_bytes(p), block_rows = p.block_rows;
    const int64_t step_bytes = Weights::step_bytes(block_rows);

    Accumulators<Out, Width> sums;
    for (int64_t k = p.crow_indices[grid_row]; k < end; ++k) {
        const uint8_t* block = find_block(p, bytes, k);
        if (block == nullptr) return p.locations[k] / p.blocks_per_page;
        // Blocks that follow each other in a row lie anywhere in memory: the hardware can't foresee the next.
        const uint8_t* ahead = k + kBlocksAhead < kept ? find_block(p, bytes, k + kBlocksAhead) : block;
        if (ahead == nullptr) ahead = block;

        const int64_t first_input = p.col_indices[k] * p.block_cols, inputs = p.in_features - first_input;
        const int64_t steps = ((inputs < p.block_cols ? inputs : p.block_cols) + 1) / 2;
        const float* x = tile.x + first_input * Width;
        const uint8_t* step = block + row_in_block * 4;
        const int64_t distance = ahead - block;
        int64_t s = 0;
        for (; s + 2 <= steps; s += 2) {
            Weights::prefetch(step + distance, block_rows);
            sums.template add<Weights, 0>(step, block_rows, x);
            Weights::prefetch(step + step_bytes + distance, block_rows);
            sums.template add<Weights, 2>(step + step_bytes, block_rows, x + 2 * Width);
            step += 2 * step_bytes;
            x += 4 * Width;
        }
        if (s < steps) sums.template add<Weights, 0>(step, block_rows, x);
    }
    float total[Width][Out::count];
    sums.total(total);
    store(p, tile, first_output, total);
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

template <int Width>
int64_t sweep_width(const Problem& p, const Tile& tile, int64_t grid_row) {
    const bool tall = p.block_rows >= SixteenOutputs::count;
    if (p.weight_dtype == Dtype::bfloat16)
        return tall ? sweep_rows<PairsOfBfloat16, SixteenOutputs, Width>(p, tile, grid_row)
                    : sweep_rows<PairsOfBfloat16, EightOutputs, Width>(p, tile, grid_row);
    return tall ? sweep_rows<ColumnsOfFloat32, SixteenOutputs, Width>(p, tile, grid_row)
                : sweep_rows<ColumnsOfFloat32, EightOutputs, Width>(p, tile, grid_row);
}

constexpr int kWidest = WEIGHTPAGER_WIDEST;
constexpr int kWidths[] = {1, 2, 3, 4, 6, 8, 12, 16};

int width(int tokens) {
    for (int candidate : kWidths)
        if (candidate >= tokens) return candidate;
    return kWidest;
}

int64_t sweep(const Problem& p, const Tile& tile, int64_t grid_row) {
    int64_t missing = kAllResident;
    unroll<sizeof kWidths / sizeof *kWidths>([&](auto i) {
        constexpr int candidate = kWidths[decltype(i)::value];
        if constexpr (candidate <= kWidest)
            if (candidate == tile.width) missing = sweep_width<candidate>(p, tile, grid_row);
    });
    return missing;
}

}  // namespace

extern const Kernel WEIGHTPAGER_KERNEL;
const Kernel WEIGHTPAGER_KERNEL = {WEIGHTPAGER_TEXT(WEIGHTPAGER_KERNEL), kWidest, width, sweep};

}  // namespace weightpager

// The micro-kernel: compiled once per instruction set, with WEIGHTPAGER_KERNEL (the symbol to define),
// WEIGHTPAGER_LANES (floats in a register), WEIGHTPAGER_WIDEST (tokens in a full tile) and, where the processor
// multiplies pairs of bfloat16, WEIGHTPAGER_EXACT (the kernel for what isn't bfloat16) set by the build.
//
// Nothing here may have external linkage but WEIGHTPAGER_KERNEL, not even an inline function of the standard
// library: the linker could give every instruction set the copy that only the newest processors can run.

#include "lanes.hpp"
#include "paged_linear.hpp"
#include "sweep.hpp"

#if defined(WEIGHTPAGER_EXACT)
#include "dot.hpp"
#endif

namespace weightpager {
namespace {

constexpr int kLanes = WEIGHTPAGER_LANES, kHalfLanes = kLanes < 8 ? kLanes : 8;

// A step is two input features: what a block holds of them for N outputs becomes an operand.

#if defined(WEIGHTPAGER_EXACT)

using Input = uint32_t;  // a pair of bfloat16
constexpr Packing kPacking = Packing::pairs;
constexpr int kRowsPerStep = 1;

template <int N>
using Operand = typename Lanes<N>::Bits;

template <int N>
using Scales = PairScales<N>;

struct Bfloat16Weights {
    static constexpr int bytes = 4;  // of a step, per output

    template <int N>
    static WEIGHTPAGER_INLINE Operand<N> read(const uint8_t* step, int64_t, const Scales<N>&) {
        return load<Operand<N>>(step);
    }
};

struct Int8Weights {
    static constexpr int bytes = 2;

    template <int N>
    static WEIGHTPAGER_INLINE Operand<N> read(const uint8_t* step, int64_t, const Scales<N>& scales) {
        return dequantised<N>(step, scales);
    }
};

#else

using Input = float;
constexpr Packing kPacking = Packing::floats;
constexpr int kRowsPerStep = 2;

template <int N>
struct Operand {
    typename Lanes<N>::Float even, odd;
};

template <int N>
struct Scales {
    typename Lanes<N>::Float scale;

    WEIGHTPAGER_INLINE void read(const uint16_t* from) { scale = widen<N>(from); }
};

struct Bfloat16Weights {
    static constexpr int bytes = 4;

    template <int N>
    static WEIGHTPAGER_INLINE Operand<N> read(const uint8_t* step, int64_t, const Scales<N>&) {
        using L = Lanes<N>;
        const auto pairs = load<typename L::Bits>(step);
        return {reinterpret_cast<typename L::Float>(pairs << 16),
                reinterpret_cast<typename L::Float>(pairs & 0xffff0000u)};
    }
};

struct Float32Weights {
    static constexpr int bytes = 8;

    template <int N>
    static WEIGHTPAGER_INLINE Operand<N> read(const uint8_t* step, int64_t block_rows, const Scales<N>&) {
        using Float = typename Lanes<N>::Float;
        return {load<Float>(step), load<Float>(step + block_rows * 4)};
    }
};

struct Int8Weights {
    static constexpr int bytes = 2;

    template <int N>
    static WEIGHTPAGER_INLINE Operand<N> read(const uint8_t* step, int64_t, const Scales<N>& scales) {
        using L = Lanes<N>;
        const auto pairs = __builtin_convertvector(load<typename L::Half>(step), typename L::Bits);
        const auto even = reinterpret_cast<typename L::Int>(pairs << 24) >> 24;
        const auto odd = reinterpret_cast<typename L::Int>(pairs << 16) >> 24;
        return {__builtin_convertvector(even, typename L::Float) * scales.scale,
                __builtin_convertvector(odd, typename L::Float) * scales.scale};
    }
};

#endif

// Several chains per output where few outputs are in flight, so that one addition needn't wait for the last.
// The order of additions thus depends on the tile's width, but on nothing else.
template <class Out, int Width>
struct Accumulators {
    static constexpr int in_flight = Out::Registers * Width;
    static constexpr int chains = in_flight >= 8 ? 1 : in_flight >= 4 ? 2 : 4;
    using Float = typename Lanes<Out::N>::Float;

    Float sum[chains][Width][Out::Registers];

    // One by one: an array this large that is cleared in one go stays in memory.
    WEIGHTPAGER_INLINE Accumulators() {
        unroll<chains * Width * Out::Registers>([&](auto i) WEIGHTPAGER_INLINED {
            constexpr int I = decltype(i)::value, R = I % Out::Registers, T = I / Out::Registers % Width;
            sum[I / Out::Registers / Width][T][R] = Float{};
        });
    }

    template <class Weights, int Step>
    WEIGHTPAGER_INLINE void add(const uint8_t* step, int64_t block_rows, const Scales<Out::N>* scales,
                                const Input* x) {
        unroll<Out::Registers>([&](auto r) WEIGHTPAGER_INLINED {
            constexpr int R = decltype(r)::value;
            // float32 keeps the two inputs of a step apart, `block_rows` floats from each other.
            constexpr int stride = Weights::bytes == 8 ? 4 : Weights::bytes;
            const auto weights = Weights::template read<Out::N>(step + R * Out::N * stride, block_rows, scales[R]);
            unroll<Width>([&](auto t) WEIGHTPAGER_INLINED {
                constexpr int T = decltype(t)::value;
#if defined(WEIGHTPAGER_EXACT)
                Float& total = sum[Step % chains][T][R];
                total = dot<Out::N>(total, weights, x[T]);
#else
                sum[(2 * Step) % chains][T][R] += weights.even * x[T];
                sum[(2 * Step + 1) % chains][T][R] += weights.odd * x[Width + T];
#endif
            });
        });
    }

    // Unrolled: one look at an accumulator by a number that isn't constant would keep all of them in memory.
    WEIGHTPAGER_INLINE void total(Float (&out)[Width][Out::Registers]) const {
        unroll<Width>([&](auto t) WEIGHTPAGER_INLINED {
            unroll<Out::Registers>([&](auto r) WEIGHTPAGER_INLINED {
                constexpr int T = decltype(t)::value, R = decltype(r)::value;
                Float all = sum[0][T][R];
                unroll<chains - 1>([&](auto c) WEIGHTPAGER_INLINED { all += sum[decltype(c)::value + 1][T][R]; });
                out[T][R] = all;
            });
        });
    }
};

template <class Weights, class Out, int Width>
int64_t sweep_outputs(const Problem& p, const Tile& tile, int64_t grid_row, int64_t row_in_block) {
    const int64_t first_output = grid_row * p.block_rows + row_in_block;
    if (first_output >= p.out_features) return kAllResident;
    const int64_t end = p.crow_indices[grid_row + 1], kept = p.crow_indices[grid_rows(p)];
    const int64_t bytes = block_bytes(p), block_rows = p.block_rows;
    const int64_t step_bytes = Weights::bytes * block_rows;
    const int64_t ahead = blocks_ahead(bytes);
    // The first to see a row of blocks fetches all of it; then it is in the cache.
    const int64_t fetched = tile.first && row_in_block == 0 ? 2 * step_bytes : 0;
    constexpr int width = Width * kRowsPerStep;

    Accumulators<Out, Width> sums;
    Scales<Out::N> scales[Out::Registers];
    for (int64_t k = p.crow_indices[grid_row]; k < end; ++k) {
        const Place place = find_block(p, bytes, k);
        if (place.block == nullptr) return p.locations[k] / p.blocks_per_page;
        // Blocks that follow each other in a row lie anywhere in memory: the hardware can't foresee the next.
        Place next = k + ahead < kept ? find_block(p, bytes, k + ahead) : place;
        if (next.block == nullptr) next = place;  // from null, even the address of a prefetch isn't defined
        const int64_t distance = next.block - place.block;
        if constexpr (Weights::bytes == 2) {
            __builtin_prefetch(next.scales + row_in_block);
            for (int r = 0; r < Out::Registers; ++r) scales[r].read(place.scales + row_in_block + r * Out::N);
        }
        const int64_t first_input = p.col_indices[k] * p.block_cols, inputs = p.in_features - first_input;
        const int64_t steps = ((inputs < p.block_cols ? inputs : p.block_cols) + 1) / 2;
        const Input* x = static_cast<const Input*>(tile.x) + first_input / 2 * width;
        const uint8_t* step = place.block + row_in_block * (Weights::bytes == 8 ? 4 : Weights::bytes);
        int64_t s = 0;
        for (; s + 2 <= steps; s += 2) {
            for (int64_t line = 0; line < fetched; line += 64) __builtin_prefetch(step + distance + line, 0, kIntoL2);
            sums.template add<Weights, 0>(step, block_rows, scales, x);
            sums.template add<Weights, 1>(step + step_bytes, block_rows, scales, x + width);
            step += 2 * step_bytes;
            x += 2 * width;
        }
        if (s < steps) sums.template add<Weights, 0>(step, block_rows, scales, x);
    }
    typename Lanes<Out::N>::Float total[Width][Out::Registers];
    sums.total(total);
    store<Out, Width>(p, tile, first_output, row_in_block, total);
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
    constexpr int sixteen = 16 / kLanes;
    constexpr bool room_for_four = kLanes == 16 && Width <= 4, room_for_two = kLanes == 16 && Width <= 12;
    if constexpr (room_for_four)
        if (p.block_rows >= 64) return sweep_rows<Weights, Outputs<kLanes, 4>, Width>(p, tile, grid_row);
    if constexpr (room_for_two)
        if (p.block_rows >= 32) return sweep_rows<Weights, Outputs<kLanes, 2>, Width>(p, tile, grid_row);
    if (p.block_rows >= 16) return sweep_rows<Weights, Outputs<kLanes, sixteen>, Width>(p, tile, grid_row);
    return sweep_rows<Weights, Outputs<kHalfLanes, 8 / kHalfLanes>, Width>(p, tile, grid_row);
}

template <int Width>
int64_t sweep_width(const Problem& p, const Tile& tile, int64_t grid_row) {
#if !defined(WEIGHTPAGER_EXACT)
    if (p.weight_dtype == Dtype::float32) return sweep_weights<Float32Weights, Width>(p, tile, grid_row);
#endif
    if (p.weight_dtype == Dtype::bfloat16) return sweep_weights<Bfloat16Weights, Width>(p, tile, grid_row);
    return sweep_weights<Int8Weights, Width>(p, tile, grid_row);
}

constexpr int kWidest = WEIGHTPAGER_WIDEST;
#if defined(WEIGHTPAGER_FEW_WIDTHS)  // sanitizers take minutes to compile all of them
constexpr int kWidths[] = {1, 2, 3, 4, 16, 28};
#else
constexpr int kWidths[] = {1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28};
#endif
static_assert(kWidest <= kWidestTile);

int width(int tokens) {
    for (int candidate : kWidths)
        if (candidate >= tokens) return candidate;
    return kWidest;
}

int64_t sweep(const Problem& p, const Tile& tile, int64_t grid_row) {
    int64_t missing = kAllResident;
    unroll<sizeof kWidths / sizeof *kWidths>([&](auto i) WEIGHTPAGER_INLINED {
        constexpr int candidate = kWidths[decltype(i)::value];
        if constexpr (candidate <= kWidest)
            if (candidate == tile.width) missing = sweep_width<candidate>(p, tile, grid_row);
    });
    return missing;
}

#if defined(WEIGHTPAGER_EXACT)
}  // namespace

extern const Kernel WEIGHTPAGER_EXACT;

namespace {
constexpr const Kernel* kOtherwise = &WEIGHTPAGER_EXACT;
bool suits(const Problem& p) { return p.dtype == Dtype::bfloat16 && p.weight_dtype != Dtype::float32; }
#else
constexpr const Kernel* kOtherwise = nullptr;
bool suits(const Problem&) { return true; }
#endif

}  // namespace

extern const Kernel WEIGHTPAGER_KERNEL;
const Kernel WEIGHTPAGER_KERNEL = {
    WEIGHTPAGER_TEXT(WEIGHTPAGER_KERNEL), kPacking, kWidest, width, sweep, suits, kOtherwise};

}  // namespace weightpager

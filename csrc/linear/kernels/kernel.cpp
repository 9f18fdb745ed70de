// The micro-kernel: compiled once per instruction set, with WEIGHTPAGER_KERNEL (the symbol to define),
// WEIGHTPAGER_LANES (floats in a register), WEIGHTPAGER_WIDEST (tokens in a full tile) and, where the processor
// multiplies pairs of bfloat16, WEIGHTPAGER_EXACT (the kernel for what isn't bfloat16) set by the build.
//
// Nothing here may have external linkage but WEIGHTPAGER_KERNEL, not even an inline function of the standard
// library: the linker could give every instruction set the copy that only the newest processors can run.

#include <cstddef>

#include "divide.hpp"
#include "integers.hpp"
#include "lanes.hpp"
#include "linear/paged_linear.hpp"
#include "sweep.hpp"
#include "text.hpp"

#if defined(WEIGHTPAGER_EXACT)
#include "dot.hpp"
#endif

#if defined(__AVX512BF16__)
#include "dequantise.hpp"
#endif

namespace weightpager {
namespace {

constexpr int kLanes = WEIGHTPAGER_LANES, kHalfLanes = kLanes < 8 ? kLanes : 8;

// Whether an activation is spread over a register once for all outputs. AVX2 has no operand that is spread as it is read.
constexpr bool kSharesInputs = kLanes == 8;

// A step is two input features, or eight: what a block holds of them for N outputs is read at once. How weights are stored
// decides what that is, what activations it is multiplied with, and what sums them up:
//   Input, inputs, rows    activations of a step: how many, in rows of single ones or of pairs
//   bytes, row_bytes       of a step per output, and from one output to the next
//   operand                what a row of activations is multiplied with
//   scaled, integers       whether a block's sums are multiplied by its rows' scales, and by those of the activations
//   passes                 over a block; after the first its sums count 256 times, and the activations' next rows follow
//   apart, excess          whether each row of activations has a sum of its own; by how much numbers are read too large

struct Unscaled {
    static constexpr bool scaled = false, integers = false, apart = false;
    static constexpr int passes = 1, excess = 0;
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
    static constexpr bool scaled = true, integers = true, apart = false;
    static constexpr int passes = 1, excess = 0;
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

#if defined(__ARM_FEATURE_DOTPROD)

// Sums of four products: with the activations' high bytes, then with the low ones.
struct DottedInt4Weights : Int4Weights {
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

// The same in one pass, of numbers as they are stored, from 0 to 15: a word's high halves count 16 times.
struct DottedInt4Weights : IntegerWeights {
    static constexpr bool apart = true;
    static constexpr int inputs = 8, rows = 4, bytes = 4, row_bytes = 4, excess = 8;

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

#endif

// Several chains per output where few outputs are in flight, so that one addition needn't wait for the last.
// The order of additions thus depends on the tile's width, but on nothing else.
template <class Weights, class Out, int Width>
struct Accumulators {
    static constexpr int in_flight = Out::Registers * Width;
    static constexpr int chains = Weights::apart ? Weights::rows : in_flight >= 8 ? 1 : in_flight >= 4 ? 2 : 4;
    using Sum = typename Weights::template Sum<Out::N>;
    using Float = typename Lanes<Out::N>::Float;

    Sum sum[chains][Width][Out::Registers];

    WEIGHTPAGER_INLINE Accumulators() { clear(); }

    WEIGHTPAGER_INLINE void clear() {
        each([](Sum& one) WEIGHTPAGER_INLINED { one = Sum{}; });
    }

    // One by one: an array this large that is changed in one go stays in memory.
    template <class Change>
    WEIGHTPAGER_INLINE void each(const Change& change) {
        unroll<chains * Width * Out::Registers>([&](auto i) WEIGHTPAGER_INLINED {
            constexpr int I = decltype(i)::value, R = I % Out::Registers, T = I / Out::Registers % Width;
            change(sum[I / Out::Registers / Width][T][R]);
        });
    }

    template <int Step>
    WEIGHTPAGER_INLINE void add(const uint8_t* step, int64_t block_rows, const typename Weights::Input* x) {
        if constexpr (kSharesInputs && Out::Registers == 2) {
            add_to_two<Step>(step, block_rows, x);
            return;
        }
        unroll<Out::Registers>([&](auto r) WEIGHTPAGER_INLINED {
            constexpr int R = decltype(r)::value;
            const auto read = Weights::template read<Out::N>(step + R * Out::N * Weights::row_bytes, block_rows);
            unroll<Weights::rows>([&](auto row) WEIGHTPAGER_INLINED {
                constexpr int Row = decltype(row)::value;
                const auto weights = Weights::template operand<Out::N, Row>(read);
                unroll<Width>([&](auto t) WEIGHTPAGER_INLINED {
                    constexpr int T = decltype(t)::value;
                    add_product<Step, Row, T, R>(weights, x[Row * Width + T]);
                });
            });
        });
    }

    // The same, each activation for both registers at once.
    template <int Step>
    WEIGHTPAGER_INLINE void add_to_two(const uint8_t* step, int64_t block_rows, const typename Weights::Input* x) {
        const auto first = Weights::template read<Out::N>(step, block_rows);
        const auto second = Weights::template read<Out::N>(step + Out::N * Weights::row_bytes, block_rows);
        unroll<Weights::rows>([&](auto row) WEIGHTPAGER_INLINED {
            constexpr int Row = decltype(row)::value;
            const auto weights = Weights::template operand<Out::N, Row>(first);
            const auto others = Weights::template operand<Out::N, Row>(second);
            unroll<Width>([&](auto t) WEIGHTPAGER_INLINED {
                constexpr int T = decltype(t)::value;
                const typename Weights::Input input = x[Row * Width + T];
                add_product<Step, Row, T, 0>(weights, input);
                add_product<Step, Row, T, 1>(others, input);
            });
        });
    }

    template <int Step, int Row, int T, int R, class Operand>
    WEIGHTPAGER_INLINE void add_product(const Operand& weights, typename Weights::Input x) {
        Sum& to = sum[(Step * Weights::rows + Row) % chains][T][R];
        to = Weights::template add<Out::N>(to, weights, x);
    }

    // Calls `with` for the sum of every token and register of outputs. Unrolled: one look at an accumulator by a number
    // that isn't constant would keep all of them in memory.
    template <class With>
    WEIGHTPAGER_INLINE void totals(const With& with) const {
        unroll<Width>([&](auto t) WEIGHTPAGER_INLINED {
            unroll<Out::Registers>([&](auto r) WEIGHTPAGER_INLINED {
                constexpr int T = decltype(t)::value, R = decltype(r)::value;
                if constexpr (Weights::apart) {
                    with(t, r, Weights::joined(sum[0][T][R], sum[1][T][R], sum[2][T][R], sum[3][T][R]));
                } else {
                    Sum all = sum[0][T][R];
                    unroll<chains - 1>([&](auto c) WEIGHTPAGER_INLINED { all += sum[decltype(c)::value + 1][T][R]; });
                    with(t, r, all);
                }
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
    constexpr int pass_width = Width * Weights::rows, width = pass_width * Weights::passes;
    using Float = typename Lanes<Out::N>::Float;
    using Input = typename Weights::Input;

    Accumulators<Weights, Out, Width> sums;
    Float total[Width][Out::Registers] = {};
    for (int64_t k = p.crow_indices[grid_row]; k < end; ++k) {
        const Place place = find_block(p, bytes, k);
        if (place.block == nullptr) return p.locations[k] / p.blocks_per_page;
        int64_t distance = 0;
        // Blocks that follow each other in a row lie anywhere in memory: the hardware can't foresee the next.
        if (tile.first) {
            Place next = k + ahead < kept ? find_block(p, bytes, k + ahead) : place;
            if (next.block == nullptr) next = place;  // from null, even the address of a prefetch isn't defined
            distance = next.block - place.block;
            if constexpr (Weights::scaled) __builtin_prefetch(next.scales + row_in_block);
        }
        const int64_t first_input = p.col_indices[k] * p.block_cols, inputs = p.in_features - first_input;
        const int64_t steps = divide_up(inputs < p.block_cols ? inputs : p.block_cols, Weights::inputs);
        for (int pass = 0; pass < Weights::passes; ++pass) {
            const Input* x =
                static_cast<const Input*>(tile.x) + first_input / Weights::inputs * width + pass * pass_width;
            const uint8_t* step = place.block + row_in_block * Weights::row_bytes;
            if constexpr (Weights::passes > 1)
                if (pass > 0) sums.each([](auto& one) WEIGHTPAGER_INLINED { one = one * 256; });
            int64_t s = 0;
            for (; s + 2 <= steps; s += 2) {
                for (int64_t line = 0; line < fetched; line += 64)
                    __builtin_prefetch(step + distance + line, 0, kIntoL2);
                sums.template add<0>(step, block_rows, x);
                sums.template add<1>(step + step_bytes, block_rows, x + width);
                step += 2 * step_bytes;
                x += 2 * width;
            }
            if (s < steps) sums.template add<0>(step, block_rows, x);
        }
        if constexpr (Weights::scaled) {
            // A block's sums are at the scale of its rows, whole numbers also at that of the activations that they met.
            const float* x_scales = Weights::integers ? tile.x_scales + p.col_indices[k] * Width : nullptr;
            const int32_t* x_sums = Weights::excess != 0 ? tile.x_sums + p.col_indices[k] * Width : nullptr;
            Float scales[Out::Registers];
            for (int r = 0; r < Out::Registers; ++r) scales[r] = widen<Out::N>(place.scales + row_in_block + r * Out::N);
            sums.totals([&](auto t, auto r, const auto& sum) WEIGHTPAGER_INLINED {
                if constexpr (Weights::excess != 0)
                    total[t][r] += __builtin_convertvector(sum - Weights::excess * x_sums[t], Float) * (scales[r] * x_scales[t]);
                else if constexpr (Weights::integers)
                    total[t][r] += __builtin_convertvector(sum, Float) * (scales[r] * x_scales[t]);
                else
                    total[t][r] += sum * scales[r];
            });
            sums.clear();
        }
    }
    if constexpr (!Weights::scaled) sums.totals([&](auto t, auto r, const auto& sum) WEIGHTPAGER_INLINED { total[t][r] = sum; });
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
    constexpr int sixteen = 16 / kLanes, sums = Weights::apart ? Width * Weights::rows : Width;  // of an output
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

template <class Weights>
int64_t sweep(const Problem& p, const Tile& tile, int64_t grid_row) {
    int64_t missing = kAllResident;
    unroll<sizeof kWidths / sizeof *kWidths>([&](auto i) WEIGHTPAGER_INLINED {
        constexpr int candidate = kWidths[decltype(i)::value];
        if constexpr (candidate <= kWidest)
            if (candidate == tile.width) missing = sweep_weights<Weights, candidate>(p, tile, grid_row);
    });
    return missing;
}

constexpr const char* kName = WEIGHTPAGER_TEXT(WEIGHTPAGER_KERNEL);

bool has_scales(const Problem& p) { return scaled(p.weight_dtype); }

int64_t sweep_integers(const Problem& p, const Tile& tile, int64_t grid_row) {
    return p.weight_dtype == Dtype::int8 ? sweep<Int8Weights>(p, tile, grid_row) : sweep<Int4Weights>(p, tile, grid_row);
}

#if defined(__ARM_FEATURE_DOTPROD)
bool is_dotted(const Problem& p) { return p.weight_dtype == Dtype::int4; }
#elif defined(__AVX512VNNI__)
// Joining a block's sums takes longer than pairs do where many tokens share what is read.
constexpr int64_t kMostDotted = 4;       // tokens
constexpr int64_t kWidestDotted = 4096;  // inputs of a block, whose sum mustn't leave an int32
bool is_dotted(const Problem& p) {
    return p.weight_dtype == Dtype::int4 && p.tokens <= kMostDotted && p.block_cols <= kWidestDotted;
}
#endif

#if defined(WEIGHTPAGER_EXACT)

}  // namespace
extern const Kernel WEIGHTPAGER_EXACT;
namespace {

constexpr const Kernel* kExact = &WEIGHTPAGER_EXACT;

constexpr Packing kPacking = Packing::pairs;

int64_t kSweep(const Problem& p, const Tile& tile, int64_t grid_row) {
#if defined(__AVX512BF16__)
    if (p.weight_dtype == Dtype::int4) return sweep<PairedInt4Weights>(p, tile, grid_row);
#endif
    return sweep<Bfloat16Weights>(p, tile, grid_row);
}

#if defined(__AVX512BF16__)
constexpr int64_t kMostIntegers = 12;  // tokens up to which whole numbers are faster than numbers from a table
#endif

bool suits(const Problem& p) {
#if defined(__AVX512BF16__)
    if (p.dtype == Dtype::bfloat16 && p.weight_dtype == Dtype::int4) return p.tokens > kMostIntegers;
#endif
    return p.dtype == Dtype::bfloat16 && p.weight_dtype == Dtype::bfloat16;
}

#else

constexpr const Kernel* kExact = nullptr;
constexpr Packing kPacking = Packing::floats;

int64_t kSweep(const Problem& p, const Tile& tile, int64_t grid_row) {
    if (p.weight_dtype == Dtype::float32) return sweep<Float32Weights>(p, tile, grid_row);
    return sweep<Bfloat16Weights>(p, tile, grid_row);
}

bool suits(const Problem& p) { return !has_scales(p); }

#endif

#if defined(__AVX512BF16__)
constexpr auto kDequantiseRow = static_cast<int64_t (*)(const Problem&, int64_t, uint8_t*)>(dequantise_row);
#else
constexpr std::nullptr_t kDequantiseRow = nullptr;
#endif
constexpr int64_t kLeastDequantised = 40;  // tokens

const Kernel integers = {kName, Packing::integers, kWidest, width, sweep_integers, has_scales, kExact, nullptr, 0};

#if defined(__ARM_FEATURE_DOTPROD) || defined(__AVX512VNNI__)
const Kernel rounded = {kName, Packing::bytes, kWidest, width, sweep<DottedInt4Weights>, is_dotted, &integers, nullptr, 0};
#else
const Kernel& rounded = integers;
#endif

}  // namespace

extern const Kernel WEIGHTPAGER_KERNEL;
const Kernel WEIGHTPAGER_KERNEL = {
    kName, kPacking, kWidest, width, kSweep, suits, &rounded, kDequantiseRow, kLeastDequantised};

}  // namespace weightpager

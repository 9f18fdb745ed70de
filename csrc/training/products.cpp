// Compiled once per instruction set, with WEIGHTPAGER_PRODUCTS (the symbol to define), WEIGHTPAGER_NAME and WEIGHTPAGER_LANES
// (floats in a register) set by the build. As in kernel.cpp, nothing here but that symbol may have external linkage.
#include "products.hpp"

#include <memory>

#include "../bfloat16.hpp"
#include "../lanes.hpp"
#include "../magnitude.hpp"
#include "../parallel.hpp"
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "../dot.hpp"
#define WEIGHTPAGER_DOT
#endif

#define WEIGHTPAGER_TEXT_OF(name) #name
#define WEIGHTPAGER_TEXT(name) WEIGHTPAGER_TEXT_OF(name)

namespace weightpager {
namespace {

constexpr int kLanes = WEIGHTPAGER_LANES;
constexpr int64_t kLargestBlock = 256;
// So that the panels of a row and of a column of blocks, 16 and 32 wide, stay in the first-level cache together.
constexpr int64_t kPairsAtOnce = 128;

using L = Lanes<kLanes>;
using Float = L::Float;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// A row of a block as its page will hold it. The scale of a row of zeros is 0.
inline void round_row(float* row, int64_t cols, float divisor, const RowRounding& to) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no place for a fraction
    const float scale = from_bfloat16(to_bfloat16(magnitude<kLanes>(row, cols) / divisor));
    const float by = scale == 0.0f ? 1.0f : scale, least = to.least, largest = to.largest;
    for (int64_t c = 0; c < cols; ++c) {
        float whole = (row[c] / by + kRound) - kRound;
        whole = whole < least ? least : whole;
        row[c] = (whole > largest ? largest : whole) * scale;
    }
}

inline void narrow_row(const float* row, int64_t cols, uint16_t* to) {
    int64_t c = 0;
    for (; c + kLanes <= cols; c += kLanes) {
        const auto halves = narrow<kLanes>(load<Float>(row + c));
        std::memcpy(to + c, &halves, sizeof halves);
    }
    for (; c < cols; ++c) to[c] = to_bfloat16(row[c]);
}

inline uint32_t pair(uint16_t even, uint16_t odd) { return even | uint32_t{odd} << 16; }

// [rows, cols] to [cols / 2, rows] pairs.
inline void interleave(const uint16_t* block, int64_t rows, int64_t cols, uint16_t* to) {
    for (int64_t c = 0; c < cols; c += 2)
        for (int64_t r = 0; r < rows; ++r, to += 2) std::memcpy(to, block + r * cols + c, 2 * sizeof *to);
}

// [rows, cols] to [rows / 2, cols] pairs: the same of its transpose. Two rows become their pairs in the same place.
inline void interleave_turned(uint16_t* block, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; r += 2, block += 2 * cols) {
        uint16_t two[2 * kLargestBlock];
        std::memcpy(two, block, static_cast<size_t>(2 * cols) * sizeof *two);
        for (int64_t c = 0; c < cols; ++c) {
            const uint32_t both = pair(two[c], two[cols + c]);
            std::memcpy(block + 2 * c, &both, sizeof both);
        }
    }
}

void pack(const KeptBlocks& of, const float* weight, const RowRounding& rounding, uint16_t* blocks, uint16_t* turned,
          int threads) {
    const int64_t grid_cols = parts(of.in_features, of.block_cols), size = of.block_rows * of.block_cols;
    parallel_for(parts(of.out_features, of.block_rows), threads, [&](int64_t grid_row) {
        for (int32_t k = of.crow_indices[grid_row]; k < of.crow_indices[grid_row + 1]; ++k) {
            uint16_t* const block = turned + k * size;  // no memory of its own, since this must not throw
            const int64_t first_col = of.col_indices[k] * of.block_cols;
            const int64_t cols = smaller(of.block_cols, of.in_features - first_col);
            for (int64_t r = 0; r < of.block_rows; ++r) {
                float row[kLargestBlock];
                const int64_t out = grid_row * of.block_rows + r, real = out < of.out_features ? cols : 0;
                std::memcpy(row, weight + out * of.in_features + first_col, static_cast<size_t>(real) * sizeof *row);
                std::memset(row + real, 0, static_cast<size_t>(of.block_cols - real) * sizeof *row);
                if (rounding.divisors)
                    round_row(row, of.block_cols, rounding.divisors[out * grid_cols + of.col_indices[k]], rounding);
                narrow_row(row, of.block_cols, block + r * of.block_cols);
            }
            interleave(block, of.block_rows, of.block_cols, blocks + k * size);
            interleave_turned(block, of.block_rows, of.block_cols);
        }
    });
}

// Tokens 2 * pair and 2 * pair + 1 of some features side by side: [groups of `width` features][pairs][width]; zero where
// there is none.
class Panels {
   public:
    Panels(const uint16_t* from, int64_t tokens, int64_t features, int64_t width)
        : from_(from), tokens_(tokens), features_(features), width_(width),
          packed_(new uint32_t[static_cast<size_t>(count() * kPairsAtOnce * width)]) {}

    int64_t count() const { return parts(features_, width_); }
    const uint32_t* at(int64_t group) const { return packed_.get() + group * kPairsAtOnce * width_; }

    void fill(int64_t group, int64_t first_pair, int64_t pairs) {
        const int64_t first = group * width_, count = smaller(width_, features_ - first);
        uint32_t* to = packed_.get() + group * kPairsAtOnce * width_;
        for (int64_t p = 0; p < pairs; ++p, to += width_) {
            const int64_t token = 2 * (first_pair + p);
            const uint16_t* even = from_ + token * features_ + first;
            if (token + 1 < tokens_)
                for (int64_t i = 0; i < count; ++i) to[i] = pair(even[i], even[features_ + i]);
            else
                for (int64_t i = 0; i < count; ++i) to[i] = even[i];
            for (int64_t i = count; i < width_; ++i) to[i] = 0;
        }
    }

   private:
    const uint16_t* from_;
    int64_t tokens_, features_, width_;
    std::unique_ptr<uint32_t[]> packed_;
};

#if defined(WEIGHTPAGER_DOT)
constexpr int kRows = 8;  // of a piece: two registers for each leave some of 32

WEIGHTPAGER_INLINE Float multiplied(Float sum, L::Bits pairs, uint32_t by) { return dot<kLanes>(sum, pairs, by); }
#else
constexpr int kRows = 4;

WEIGHTPAGER_INLINE Float multiplied(Float sum, L::Bits pairs, uint32_t by) {
    constexpr uint32_t kHigh = 0xffff0000u;
    sum += reinterpret_cast<Float>(pairs << 16) * from_bfloat16(static_cast<uint16_t>(by));
    return sum + reinterpret_cast<Float>(pairs & kHigh) * from_bfloat16(static_cast<uint16_t>(by >> 16));
}
#endif

constexpr int kRegisters = 2;  // a row of a piece
constexpr int kCols = kRegisters * kLanes;

// A piece of a block, [kRows, kCols] of `sum`, gains what these pairs of tokens give.
inline void add_piece(const uint32_t* x, int64_t x_width, const uint32_t* dy, int64_t dy_width, int64_t pairs, float* sum,
                      int64_t stride) {
    Float sums[kRows][kRegisters];
    unroll<kRows>([&](auto r) WEIGHTPAGER_INLINED {
        unroll<kRegisters>([&](auto i) WEIGHTPAGER_INLINED { sums[r][i] = load<Float>(sum + r * stride + i * kLanes); });
    });
    for (int64_t p = 0; p < pairs; ++p, x += x_width, dy += dy_width) {
        L::Bits columns[kRegisters];
        unroll<kRegisters>([&](auto i) WEIGHTPAGER_INLINED { columns[i] = load<L::Bits>(x + i * kLanes); });
        unroll<kRows>([&](auto r) WEIGHTPAGER_INLINED {
            unroll<kRegisters>([&](auto i) WEIGHTPAGER_INLINED { sums[r][i] = multiplied(sums[r][i], columns[i], dy[r]); });
        });
    }
    unroll<kRows>([&](auto r) WEIGHTPAGER_INLINED {
        unroll<kRegisters>(
            [&](auto i) WEIGHTPAGER_INLINED { std::memcpy(sum + r * stride + i * kLanes, &sums[r][i], sizeof(Float)); });
    });
}

// The same at an edge of the weight, or where a block is narrower than a piece.
inline void add_part(const uint32_t* x, int64_t x_width, const uint32_t* dy, int64_t dy_width, int64_t pairs, float* sum,
                     int64_t stride, int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) {
            float value = sum[r * stride + c];
            for (int64_t p = 0; p < pairs; ++p) {
                const uint32_t one = x[p * x_width + c], other = dy[p * dy_width + r];
                value += from_bfloat16(static_cast<uint16_t>(one)) * from_bfloat16(static_cast<uint16_t>(other));
                value += from_bfloat16(static_cast<uint16_t>(one >> 16)) * from_bfloat16(static_cast<uint16_t>(other >> 16));
            }
            sum[r * stride + c] = value;
        }
}

void add_block(const KeptBlocks& of, const uint32_t* x, const uint32_t* dy, int64_t pairs, int64_t first_row,
               int64_t first_col, float* sum) {
    const int64_t rows = smaller(of.block_rows, of.out_features - first_row);
    const int64_t cols = smaller(of.block_cols, of.in_features - first_col);
    float* const block = sum + first_row * of.in_features + first_col;
    for (int64_t r = 0; r < rows; r += kRows)
        for (int64_t c = 0; c < cols; c += kCols) {
            const int64_t some_rows = smaller(kRows, rows - r), some_cols = smaller(kCols, cols - c);
            float* const at = block + r * of.in_features + c;
            if (some_rows == kRows && some_cols == kCols)
                add_piece(x + c, of.block_cols, dy + r, of.block_rows, pairs, at, of.in_features);
            else
                add_part(x + c, of.block_cols, dy + r, of.block_rows, pairs, at, of.in_features, some_rows, some_cols);
        }
}

void add_gradient(const KeptBlocks& of, const uint16_t* x, const uint16_t* dy, int64_t tokens, float* sum, int threads) {
    Panels columns(x, tokens, of.in_features, of.block_cols), rows(dy, tokens, of.out_features, of.block_rows);
    const int64_t all_pairs = parts(tokens, 2);
    for (int64_t first = 0; first < all_pairs; first += kPairsAtOnce) {
        const int64_t pairs = smaller(kPairsAtOnce, all_pairs - first);
        parallel_for(columns.count() + rows.count(), threads, [&](int64_t i) {
            if (i < columns.count())
                columns.fill(i, first, pairs);
            else
                rows.fill(i - columns.count(), first, pairs);
        });
        parallel_for(rows.count(), threads, [&](int64_t row) {
            for (int32_t k = of.crow_indices[row]; k < of.crow_indices[row + 1]; ++k)
                add_block(of, columns.at(of.col_indices[k]), rows.at(row), pairs, row * of.block_rows,
                          of.col_indices[k] * of.block_cols, sum);
        });
    }
}

}  // namespace

extern const Products WEIGHTPAGER_PRODUCTS;
const Products WEIGHTPAGER_PRODUCTS = {WEIGHTPAGER_TEXT(WEIGHTPAGER_NAME), pack, add_gradient};

}  // namespace weightpager

// Compiled once per instruction set, with WEIGHTPAGER_PRODUCTS (the symbol to define), WEIGHTPAGER_NAME and WEIGHTPAGER_LANES
// (floats in a register) set by the build. As in kernel.cpp, nothing here but that symbol may have external linkage.
#include "products.hpp"

#include <memory>

#include "bfloat16.hpp"
#include "divide.hpp"
#include "lanes.hpp"
#include "magnitude.hpp"
#include "parallel.hpp"
#include "text.hpp"
#if defined(__AVX512BF16__) || defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "linear/kernels/dot.hpp"
#define WEIGHTPAGER_DOT
#endif

namespace weightpager {
namespace {

constexpr int kLanes = WEIGHTPAGER_LANES;
constexpr int64_t kLargestBlock = 256;
// So that the panels of a row and of a column of blocks, 16 and 32 wide, stay in the first-level cache together.
constexpr int64_t kElementsAtOnce = 128;

using L = Lanes<kLanes>;
using Float = L::Float;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

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
    const int64_t grid_cols = divide_up(of.in_features, of.block_cols), size = of.block_rows * of.block_cols;
    parallel_for(divide_up(of.out_features, of.block_rows), threads, [&](int64_t grid_row) {
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

// A sum goes from element to element of a panel. In bfloat16 an element holds two tokens of a feature, in float32 one.

struct Pairs {
    using Value = uint16_t;
    using Element = uint32_t;
    template <int N>
    using Register = typename Lanes<N>::Bits;
    static constexpr int tokens = 2;

    static Element element(const Value* values, const Value* of_next) { return pair(*values, of_next ? *of_next : 0); }

    template <int N>
    static WEIGHTPAGER_INLINE typename Lanes<N>::Float add(typename Lanes<N>::Float sum, Register<N> columns, Element by) {
#if defined(WEIGHTPAGER_DOT)
        return dot<N>(sum, columns, by);
#else
        using Float = typename Lanes<N>::Float;
        constexpr uint32_t kHigh = 0xffff0000u;
        sum += reinterpret_cast<Float>(columns << 16) * from_bfloat16(static_cast<uint16_t>(by));
        return sum + reinterpret_cast<Float>(columns & kHigh) * from_bfloat16(static_cast<uint16_t>(by >> 16));
#endif
    }

    static float add_one(float sum, Element one, Element other) {
        sum += from_bfloat16(static_cast<uint16_t>(one)) * from_bfloat16(static_cast<uint16_t>(other));
        return sum + from_bfloat16(static_cast<uint16_t>(one >> 16)) * from_bfloat16(static_cast<uint16_t>(other >> 16));
    }
};

struct Singles {
    using Value = float;
    using Element = float;
    template <int N>
    using Register = typename Lanes<N>::Float;
    static constexpr int tokens = 1;

    static Element element(const Value* value, const Value*) { return *value; }
    template <int N>
    static WEIGHTPAGER_INLINE Register<N> add(Register<N> sum, Register<N> columns, Element by) {
        return sum + columns * by;
    }
    static float add_one(float sum, Element one, Element other) { return sum + one * other; }
};

// Elements of some features side by side: [groups of `width` features][elements][width]; zero where there is no feature, or
// no second token.
template <class Of>
class Panels {
   public:
    using Value = typename Of::Value;
    using Element = typename Of::Element;

    Panels(const Value* from, int64_t tokens, int64_t features, int64_t width)
        : from_(from), tokens_(tokens), features_(features), width_(width),
          packed_(new Element[static_cast<size_t>(count() * kElementsAtOnce * width)]) {}

    int64_t count() const { return divide_up(features_, width_); }
    const Element* at(int64_t group) const { return packed_.get() + group * kElementsAtOnce * width_; }

    void fill(int64_t group, int64_t first_element, int64_t elements) {
        const int64_t first = group * width_, count = smaller(width_, features_ - first);
        Element* to = packed_.get() + group * kElementsAtOnce * width_;
        for (int64_t e = 0; e < elements; ++e, to += width_) {
            const int64_t token = Of::tokens * (first_element + e);
            const Value* values = from_ + token * features_ + first;
            if (Of::tokens > 1 && token + Of::tokens <= tokens_)
                for (int64_t i = 0; i < count; ++i) to[i] = Of::element(values + i, values + features_ + i);
            else
                for (int64_t i = 0; i < count; ++i) to[i] = Of::element(values + i, nullptr);
            for (int64_t i = count; i < width_; ++i) to[i] = 0;
        }
    }

   private:
    const Value* from_;
    int64_t tokens_, features_, width_;
    std::unique_ptr<Element[]> packed_;
};

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 8;  // of a piece: two registers for each leave some of 32
#else
constexpr int kRows = 4;
#endif

// Elements of some features in a panel, and how far it is to the next ones.
template <class Of>
struct Features {
    const typename Of::Element* first;
    int64_t width;

    Features from(int64_t feature) const { return {first + feature, width}; }
};

// A piece of a block, [kRows, Registers * N] of `sum`, gains what these elements give. Returns the piece's columns.
template <class Of, int N, int Registers>
inline int64_t add_piece(Features<Of> x, Features<Of> dy, int64_t elements, float* sum, int64_t stride) {
    using Vector = typename Lanes<N>::Float;
    using Columns = typename Of::template Register<N>;
    Vector sums[kRows][Registers];
    unroll<kRows>([&](auto r) WEIGHTPAGER_INLINED {
        unroll<Registers>([&](auto i) WEIGHTPAGER_INLINED { sums[r][i] = load<Vector>(sum + r * stride + i * N); });
    });
    for (int64_t e = 0; e < elements; ++e, x.first += x.width, dy.first += dy.width) {
        Columns columns[Registers];
        unroll<Registers>([&](auto i) WEIGHTPAGER_INLINED { columns[i] = load<Columns>(x.first + i * N); });
        unroll<kRows>([&](auto r) WEIGHTPAGER_INLINED {
            const auto row = dy.first[r];
            unroll<Registers>(
                [&](auto i) WEIGHTPAGER_INLINED { sums[r][i] = Of::template add<N>(sums[r][i], columns[i], row); });
        });
    }
    unroll<kRows>([&](auto r) WEIGHTPAGER_INLINED {
        unroll<Registers>(
            [&](auto i) WEIGHTPAGER_INLINED { std::memcpy(sum + r * stride + i * N, &sums[r][i], sizeof(Vector)); });
    });
    return Registers * N;
}

// The same at an edge of the weight, where no piece fits.
template <class Of>
inline void add_part(Features<Of> x, Features<Of> dy, int64_t elements, float* sum, int64_t stride, int64_t rows,
                     int64_t cols) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) {
            float value = sum[r * stride + c];
            for (int64_t e = 0; e < elements; ++e)
                value = Of::add_one(value, x.first[e * x.width + c], dy.first[e * dy.width + r]);
            sum[r * stride + c] = value;
        }
}

// The widest piece that fits into these rows and columns, or all of them one by one. Returns the columns that are done.
template <class Of>
int64_t add_some(Features<Of> x, Features<Of> dy, int64_t elements, float* sum, int64_t stride, int64_t rows, int64_t cols) {
    if (rows == kRows) {
        if (cols >= 2 * kLanes) return add_piece<Of, kLanes, 2>(x, dy, elements, sum, stride);
        if (cols >= kLanes) return add_piece<Of, kLanes, 1>(x, dy, elements, sum, stride);
        if constexpr (kLanes > 8)
            if (cols >= 8) return add_piece<Of, 8, 1>(x, dy, elements, sum, stride);
    }
    add_part(x, dy, elements, sum, stride, rows, cols);
    return cols;
}

template <class Of>
void add_block(const KeptBlocks& of, Features<Of> x, Features<Of> dy, int64_t elements, int64_t first_row,
               int64_t first_col, float* sum) {
    const int64_t rows = smaller(of.block_rows, of.out_features - first_row);
    const int64_t cols = smaller(of.block_cols, of.in_features - first_col);
    float* const block = sum + first_row * of.in_features + first_col;
    for (int64_t r = 0; r < rows; r += kRows)
        for (int64_t c = 0; c < cols;)
            c += add_some(x.from(c), dy.from(r), elements, block + r * of.in_features + c, of.in_features,
                          smaller(kRows, rows - r), cols - c);
}

template <class Of>
void add_gradient(const KeptBlocks& of, const typename Of::Value* x, const typename Of::Value* dy, int64_t tokens, float* sum,
                  int threads) {
    Panels<Of> columns(x, tokens, of.in_features, of.block_cols), rows(dy, tokens, of.out_features, of.block_rows);
    const int64_t all = divide_up(tokens, Of::tokens);
    for (int64_t first = 0; first < all; first += kElementsAtOnce) {
        const int64_t elements = smaller(kElementsAtOnce, all - first);
        parallel_for(columns.count() + rows.count(), threads, [&](int64_t i) {
            if (i < columns.count())
                columns.fill(i, first, elements);
            else
                rows.fill(i - columns.count(), first, elements);
        });
        parallel_for(rows.count(), threads, [&](int64_t row) {
            for (int32_t k = of.crow_indices[row]; k < of.crow_indices[row + 1]; ++k)
                add_block<Of>(of, {columns.at(of.col_indices[k]), of.block_cols}, {rows.at(row), of.block_rows}, elements,
                              row * of.block_rows, of.col_indices[k] * of.block_cols, sum);
        });
    }
}

}  // namespace

extern const Products WEIGHTPAGER_PRODUCTS;
const Products WEIGHTPAGER_PRODUCTS = {WEIGHTPAGER_TEXT(WEIGHTPAGER_NAME), pack, add_gradient<Pairs>, add_gradient<Singles>};

}  // namespace weightpager

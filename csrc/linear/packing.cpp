// Compiled once per instruction set, with WEIGHTPAGER_PACK (the symbol to define) and WEIGHTPAGER_LANES (floats in a
// register) set by the build. As in kernel.cpp, nothing here but that symbol may have external linkage.
#include "packing.hpp"

#include "bfloat16.hpp"
#include "lanes.hpp"
#include "magnitude.hpp"

namespace weightpager {
namespace {

constexpr int kLanes = WEIGHTPAGER_LANES;

using L = Lanes<kLanes>;
using Int = L::Int;

constexpr int kSquare = 4;  // lines that are spread at once: as many as any processor has registers for

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline void spread_square(const uint32_t* from, uint32_t* to, int width) {
    using Four = Lanes<kSquare>::Bits;
    Four lines[kSquare];
    for (int i = 0; i < kSquare; ++i) lines[i] = load<Four>(from + i * kLine);
    // Halves of pairs of lines, then of pairs of these.
    const Four ab = shuffle<0, 4, 1, 5>(lines[0], lines[1]), cd = shuffle<0, 4, 1, 5>(lines[2], lines[3]);
    const Four ab_high = shuffle<2, 6, 3, 7>(lines[0], lines[1]), cd_high = shuffle<2, 6, 3, 7>(lines[2], lines[3]);
    const Four columns[kSquare] = {shuffle<0, 1, 4, 5>(ab, cd), shuffle<2, 3, 6, 7>(ab, cd),
                                   shuffle<0, 1, 4, 5>(ab_high, cd_high), shuffle<2, 3, 6, 7>(ab_high, cd_high)};
    for (int i = 0; i < kSquare; ++i) std::memcpy(to + i * width, &columns[i], sizeof columns[i]);
}

// Element i of line t becomes element t of line i, `width` to a line.
inline void spread(const uint32_t (*lines)[kLine], int64_t count, int width, uint32_t* packed) {
    int64_t i = 0;
    for (; i + kSquare <= count; i += kSquare) {
        int t = 0;
        for (; t + kSquare <= width; t += kSquare) spread_square(&lines[t][i], packed + i * width + t, width);
        for (; t < width; ++t)
            for (int64_t j = i; j < i + kSquare; ++j) packed[j * width + t] = lines[t][j];
    }
    for (; i < count; ++i)
        for (int t = 0; t < width; ++t) packed[i * width + t] = lines[t][i];
}

// Calls `read(token, first, line)` for every line of every token. A line of every token is gathered before any is spread:
// rows of activations a power of two apart would compete for the same places in the cache.
template <Packing P, class ReadLine>
void by_line(const Problem& p, const Tile& to, uint32_t* packed, const ReadLine& read) {
    const int64_t rows = packed_rows(P, p.in_features);
    for (int64_t first = 0; first < rows; first += kLine) {
        uint32_t lines[kWidestTile][kLine];
        std::memset(lines, 0, static_cast<size_t>(to.width) * sizeof *lines);
        for (int t = 0; t < to.tokens; ++t) read(to.first_token + t, first, lines[t]);
        const int64_t count = smaller(kLine, rows - first);
        if (P == Packing::lines)
            std::memcpy(packed + first * to.width, lines, static_cast<size_t>(to.width) * sizeof *lines);
        else if (to.width == 1)
            std::memcpy(packed + first, lines, static_cast<size_t>(count) * sizeof **lines);
        else
            spread(lines, count, to.width, packed + first * to.width);
    }
}

// So that not even the sum of a whole row of a block leaves an int32, nor a high byte an int8. It is the same for whole
// numbers and their bytes: both give the same sums then, and a token's outputs don't depend on how many are read with it.
float largest_integer(const Problem& p) {
    constexpr int64_t kLargest = 127 * 256 + 127, kSum = (int64_t{1} << 31) - 1, kLargestWeight = 128;
    return static_cast<float>(smaller(kLargest, kSum / (kLargestWeight * p.block_cols)));
}

// Multiplied, to the nearest, and written as int16: what is added leaves no place for a fraction.
template <class T>
WEIGHTPAGER_INLINE void round_all(const T* from, int64_t count, float inverse, char* to) {
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
    constexpr int32_t kRoundBits = 0x4b400000;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const auto shifted = reinterpret_cast<Int>(widened<kLanes>(from + i) * inverse + kRound);
        const auto halves = __builtin_convertvector(shifted - kRoundBits, L::Half);
        std::memcpy(to + i * sizeof(int16_t), &halves, sizeof halves);
    }
    for (; i < count; ++i) {
        const float shifted = widened_one(from[i]) * inverse + kRound;
        int32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        const auto number = static_cast<int16_t>(bits - kRoundBits);
        std::memcpy(to + i * sizeof number, &number, sizeof number);
    }
}

inline int32_t sum(const int16_t* integers, int64_t count) {
    int32_t found = 0;
    for (int64_t i = 0; i < count; ++i) found += integers[i];
    return found;
}

// Eight inputs into the rows of bytes that `Packing` says.
inline void split(const int16_t* integers, uint32_t* rows) {
    typedef int16_t Numbers __attribute__((vector_size(kStepInputs * sizeof(int16_t))));
    typedef int8_t Bytes __attribute__((vector_size(sizeof(Numbers))));
    const auto numbers = load<Numbers>(integers);
    // A low byte has a sign, too: where that makes it negative, the high one is one more.
    const Bytes lows = (Bytes)numbers, highs = (Bytes)(numbers + 128);
    const Bytes split = shuffle<17, 21, 19, 23, 25, 29, 27, 31, 0, 4, 2, 6, 8, 12, 10, 14>(lows, highs);
    std::memcpy(rows, &split, sizeof split);
}

template <Packing P, class T>
void pack_integers(const Problem& p, const Tile& to, const T* x, uint32_t* packed, float* scales, int32_t* sums) {
    const float largest = largest_integer(p);
    const auto cols = static_cast<uint32_t>(p.block_cols), features = static_cast<uint32_t>(p.in_features);
    for (int t = 0; t < to.width; ++t) {
        const T* from = x + (to.first_token + t) * p.in_features;
        for (uint32_t first = 0, group = 0; first < features; first += cols, ++group) {
            scales[group * to.width + t] =
                t < to.tokens ? magnitude<kLanes>(from + first, smaller(cols, features - first)) / largest : 0.0f;
            if (P == Packing::bytes) sums[group * to.width + t] = 0;
        }
    }
    by_line<P>(p, to, packed, [&](int64_t token, int64_t first, uint32_t* line) WEIGHTPAGER_INLINED {
        const auto begin = static_cast<uint32_t>(2 * first);
        const auto count = static_cast<uint32_t>(smaller(2 * kLine, p.in_features - begin));
        const T* from = x + token * p.in_features + begin;
        int16_t integers[2 * kLine] = {};
        // What is stored in parts can't be read as one without a wait: so not by way of `integers`, where that is possible.
        auto* numbers = reinterpret_cast<char*>(P == Packing::bytes ? static_cast<void*>(integers) : line);
        for (uint32_t i = 0; i < count;) {
            const uint32_t group = (begin + i) / cols, end = (group + 1) * cols - begin;
            const uint32_t some = (end < count ? end : count) - i;
            const int64_t of_group = group * to.width + token - to.first_token;
            const float scale = scales[of_group];
            round_all(from + i, some, scale > 0.0f ? 1.0f / scale : 0.0f, numbers + i * sizeof *integers);
            if (P == Packing::bytes) sums[of_group] += sum(integers + i, some);
            i += some;
        }
        if (P == Packing::bytes)
            for (int64_t i = 0; i < 2 * kLine; i += kStepInputs) split(integers + i, line + i / 2);
    });
}

template <class T>
void pack_floats(const Problem& p, const Tile& to, const T* x, uint32_t* packed) {
    by_line<Packing::floats>(p, to, packed, [&](int64_t token, int64_t first, uint32_t* line) WEIGHTPAGER_INLINED {
        const T* from = x + token * p.in_features + first;
        const int64_t count = smaller(kLine, p.in_features - first);
        for (int64_t i = 0; i < count; ++i) {
            const float value = widened_one(from[i]);
            std::memcpy(line + i, &value, sizeof value);
        }
    });
}

template <Packing P>
void pack_bfloat16(const Problem& p, const Tile& to, const uint16_t* x, uint32_t* packed) {
    by_line<P>(p, to, packed, [&](int64_t token, int64_t first, uint32_t* line) WEIGHTPAGER_INLINED {
        const int64_t count = smaller(2 * kLine, p.in_features - 2 * first);
        std::memcpy(line, x + token * p.in_features + 2 * first, static_cast<size_t>(count) * sizeof *x);
    });
}

template <class T>
void pack_any(Packing packing, const Problem& p, const Tile& to, const T* x, uint32_t* packed, float* x_scales,
              int32_t* x_sums) {
    if (packing == Packing::integers)
        pack_integers<Packing::integers>(p, to, x, packed, x_scales, x_sums);
    else if (packing == Packing::bytes)
        pack_integers<Packing::bytes>(p, to, x, packed, x_scales, x_sums);
    else
        pack_floats(p, to, x, packed);
}

}  // namespace

void WEIGHTPAGER_PACK(Packing packing, const Problem& p, const Tile& to, uint32_t* packed, float* x_scales,
                      int32_t* x_sums) {
    const auto* halves = static_cast<const uint16_t*>(p.x);
    if (packing == Packing::pairs)
        pack_bfloat16<Packing::pairs>(p, to, halves, packed);
    else if (packing == Packing::lines)
        pack_bfloat16<Packing::lines>(p, to, halves, packed);
    else if (p.dtype == Dtype::float32)
        pack_any(packing, p, to, static_cast<const float*>(p.x), packed, x_scales, x_sums);
    else
        pack_any(packing, p, to, halves, packed, x_scales, x_sums);
}

}  // namespace weightpager

#include "paged_linear.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>

#include "bfloat16.hpp"
#include "lanes.hpp"
#include "parallel.hpp"
#include "wide_row.hpp"

namespace weightpager {
namespace {

constexpr int64_t kPanelBytes = 1 << 19;           // of packed activations; one full tile if that is more
constexpr int64_t kPanelBytesPerThread = 1 << 17;  // packing less than this is done before another thread wakes up
constexpr int64_t kSerialWork = 1 << 16;           // multiplications that are done before other threads have woken up
constexpr int64_t kOutputsAtOnce = 16;             // of a block that is dequantised
constexpr int64_t kChunksPerThread = 8;            // so that a thread that is held up doesn't hold up the rest

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What is packed of one token at a time: a cache line.
constexpr int64_t kLine = 64 / sizeof(uint32_t);

constexpr int64_t kStepInputs = 8;  // at most

constexpr int kSquare = 4;  // lines that are spread at once: as many as any processor has registers for

// Some of the tokens, cut into tiles and packed as the kernel wants them: the values of a tile's tokens for one input,
// or one pair of them, lie together. Padded with zeros, which makes an odd number of input features even and the last
// tile as wide as the kernel wants it.
class Panel {
   public:
    Panel(const Kernel& kernel, const Problem& problem) : kernel_(kernel), p_(problem) {
        rows_ = rows(kernel.packing, problem.in_features);
        const int64_t tile_bytes = rows_ * kernel.widest * int64_t{sizeof(uint32_t)};
        const int64_t tiles = std::max<int64_t>(1, kPanelBytes / tile_bytes);
        capacity_ = std::min(tiles * kernel.widest, problem.tokens);
        const int64_t columns = divide_up(capacity_, kernel.widest) * kernel.widest;
        packed_.reset(new uint32_t[static_cast<size_t>(columns * rows_)]);
        if (integers()) scales_.reset(new float[static_cast<size_t>(columns * groups())]);
    }

    int64_t capacity() const { return capacity_; }
    int64_t tokens() const { return tokens_; }
    int64_t tiles() const { return divide_up(tokens_, kernel_.widest); }

    void fill(int64_t first_token, int threads) {
        first_ = first_token;
        tokens_ = std::min(capacity_, p_.tokens - first_token);
        const int64_t useful = 1 + tokens_ * rows_ * int64_t{sizeof(uint32_t)} / kPanelBytesPerThread;
        parallel_for(tiles(), static_cast<int>(std::min<int64_t>(threads, useful)), [&](int64_t i) { pack(i); });
    }

    // Tiles of about equal width: one that is nearly empty takes almost as long as a full one.
    Tile tile(int64_t i) const {
        const int64_t before = tokens_ * i / tiles(), end = tokens_ * (i + 1) / tiles();
        const int tokens = static_cast<int>(end - before);
        return {packed_.get() + i * kernel_.widest * rows_,
                first_ + before,
                tokens,
                kernel_.width(tokens),
                i == 0,
                scales_ == nullptr ? nullptr : scales_.get() + i * kernel_.widest * groups(),
                nullptr,
                nullptr,
                Activation::silu};
    }

   private:
    // 32-bit numbers of a token.
    static int64_t rows(Packing packing, int64_t in_features) {
        if (packing == Packing::lines) return divide_up(in_features, kTileInputs) * kLine;
        // As many as a step of any weight needs.
        return divide_up(in_features, kStepInputs) * kStepInputs / (packing == Packing::floats ? 1 : 2);
    }

    bool integers() const { return kernel_.packing == Packing::integers || kernel_.packing == Packing::bytes; }

    // Of inputs that have a scale in common.
    int64_t groups() const { return divide_up(p_.in_features, p_.block_cols); }

    void pack(int64_t i) {
        const Tile to = tile(i);
        uint32_t* packed = packed_.get() + i * kernel_.widest * rows_;
        if (integers() && p_.dtype == Dtype::float32)
            interleave_integers(to, packed, static_cast<const float*>(p_.x), [](float value) { return value; });
        else if (integers())
            interleave_integers(to, packed, static_cast<const uint16_t*>(p_.x), from_bfloat16);
        else if (p_.dtype == Dtype::float32)
            interleave(to, packed, static_cast<const uint32_t*>(p_.x), [](uint32_t value) { return value; });
        else if (kernel_.packing == Packing::floats)
            interleave(to, packed, static_cast<const uint16_t*>(p_.x),
                       [](uint16_t value) { return uint32_t{value} << 16; });
        else
            interleave_pairs(to, packed);
    }

    template <class T, class Widen>
    void interleave(const Tile& to, uint32_t* packed, const T* x, const Widen& widen) const {
        by_line(to, packed, [&](int64_t token, int64_t first, uint32_t* line) {
            const T* from = x + token * p_.in_features + first;
            const int64_t count = std::min(kLine, p_.in_features - first);
            for (int64_t i = 0; i < count; ++i) line[i] = widen(from[i]);
        });
    }

    void interleave_pairs(const Tile& to, uint32_t* packed) const {
        by_line(to, packed, [&](int64_t token, int64_t first, uint32_t* line) {
            const uint16_t* from = static_cast<const uint16_t*>(p_.x) + token * p_.in_features + 2 * first;
            const int64_t count = std::min(2 * kLine, p_.in_features - 2 * first);
            std::memcpy(line, from, static_cast<size_t>(count) * sizeof *from);
        });
    }

    template <class T, class Widen>
    void interleave_integers(const Tile& to, uint32_t* packed, const T* x, const Widen& widen) {
        const float largest = largest_integer();
        float* scales = scales_.get() + (to.x_scales - scales_.get());
        for (int t = 0; t < to.width; ++t)
            for (int64_t group = 0; group < groups(); ++group) {
                const T* from = x + (to.first_token + t) * p_.in_features;
                scales[group * to.width + t] = t < to.tokens ? magnitude(from, group, widen) / largest : 0.0f;
            }
        by_line(to, packed, [&](int64_t token, int64_t first, uint32_t* line) {
            const T* from = x + token * p_.in_features + 2 * first;
            const int64_t count = std::min(2 * kLine, p_.in_features - 2 * first);
            int16_t integers[2 * kLine] = {};
            for (int64_t i = 0; i < count;) {
                const int64_t group = (2 * first + i) / p_.block_cols;
                const int64_t end = std::min(count, (group + 1) * p_.block_cols - 2 * first);
                const float scale = scales[group * to.width + token - to.first_token];
                const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
                for (; i < end; ++i) integers[i] = rounded(widen(from[i]) * inverse);
            }
            if (kernel_.packing == Packing::bytes) {
                for (int64_t first_of = 0; first_of < 2 * kLine; first_of += kStepInputs)
                    split(integers + first_of, line + first_of / 2);
                return;
            }
            std::memcpy(line, integers, sizeof integers);
        });
    }

    // Eight inputs into the rows of bytes that `Packing` says.
    static void split(const int16_t* integers, uint32_t* rows) {
        constexpr int kOrder[kStepInputs] = {0, 2, 1, 3, 4, 6, 5, 7};
        int8_t bytes[2][kStepInputs];
        for (int i = 0; i < kStepInputs; ++i) {
            const int value = integers[kOrder[i]], high = (value + 128) >> 8;
            bytes[0][i] = static_cast<int8_t>(high);
            bytes[1][i] = static_cast<int8_t>(value - high * 256);
        }
        std::memcpy(rows, bytes, sizeof bytes);
    }

    // So that not even the sum of a whole row of a block leaves an int32, nor a high byte an int8.
    float largest_integer() const {
        if (kernel_.packing == Packing::bytes) return 127 * 256 + 127;
        constexpr int64_t kLargest = 32767, kSum = (int64_t{1} << 31) - 1, kLargestWeight = 128;
        return static_cast<float>(std::min(kLargest, kSum / (kLargestWeight * p_.block_cols)));
    }

    // The largest magnitude in a group, NaN if one isn't finite: then nothing that the group takes part in is a number.
    // Magnitudes are in the order of their bits, of which compilers make vectors as they may not of a maximum of floats.
    template <class T, class Widen>
    float magnitude(const T* x, int64_t group, const Widen& widen) const {
        constexpr int32_t kMagnitude = 0x7fffffff, kInfinite = 0x7f800000;
        const int64_t first = group * p_.block_cols, end = std::min(first + p_.block_cols, p_.in_features);
        int32_t largest = 0;
        for (int64_t i = first; i < end; ++i) {
            const float value = widen(x[i]);
            int32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            largest = std::max(largest, bits & kMagnitude);
        }
        if (largest >= kInfinite) return std::numeric_limits<float>::quiet_NaN();
        float found;
        std::memcpy(&found, &largest, sizeof found);
        return found;
    }

    // To the nearest: what is added leaves no place for a fraction.
    static int16_t rounded(float value) {
        const float shifted = value + 12582912.0f;  // 1.5 * 2^23
        int32_t bits;
        std::memcpy(&bits, &shifted, sizeof bits);
        return static_cast<int16_t>(bits - 0x4b400000);
    }

    // A line of every token is gathered before any is spread: rows of activations a power of two apart would
    // compete for the same places in the cache.
    template <class ReadLine>
    void by_line(const Tile& to, uint32_t* packed, const ReadLine& read) const {
        for (int64_t first = 0; first < rows_; first += kLine) {
            uint32_t lines[kWidestTile][kLine];
            std::memset(lines, 0, static_cast<size_t>(to.width) * sizeof *lines);
            for (int t = 0; t < to.tokens; ++t) read(to.first_token + t, first, lines[t]);
            if (kernel_.packing == Packing::lines) {
                std::memcpy(packed + first * to.width, lines, static_cast<size_t>(to.width) * sizeof *lines);
                continue;
            }
            const int64_t count = std::min(kLine, rows_ - first);
            if (to.width == 1)
                std::memcpy(packed + first, lines, static_cast<size_t>(count) * sizeof **lines);
            else
                spread(lines, count, to.width, packed + first * to.width);
        }
    }

    // Element i of line t becomes element t of line i, `width` to a line.
    static void spread(const uint32_t (*lines)[kLine], int64_t count, int width, uint32_t* packed) {
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

    static void spread_square(const uint32_t* from, uint32_t* to, int width) {
        using Four = Lanes<kSquare>::Bits;
        const Four a = load<Four>(from), b = load<Four>(from + kLine), c = load<Four>(from + 2 * kLine),
                   d = load<Four>(from + 3 * kLine);
        // Halves of pairs of lines, then of pairs of these.
        const Four ab = low_halves(a, b), cd = low_halves(c, d), ab_high = high_halves(a, b), cd_high = high_halves(c, d);
        const Four columns[kSquare] = {Four{ab[0], ab[1], cd[0], cd[1]}, Four{ab[2], ab[3], cd[2], cd[3]},
                                       Four{ab_high[0], ab_high[1], cd_high[0], cd_high[1]},
                                       Four{ab_high[2], ab_high[3], cd_high[2], cd_high[3]}};
        for (int i = 0; i < kSquare; ++i) std::memcpy(to + i * width, &columns[i], sizeof columns[i]);
    }

    template <class Four>
    static Four low_halves(Four a, Four b) {
        return Four{a[0], b[0], a[1], b[1]};
    }

    template <class Four>
    static Four high_halves(Four a, Four b) {
        return Four{a[2], b[2], a[3], b[3]};
    }

    const Kernel& kernel_;
    const Problem& p_;
    int64_t rows_, capacity_, first_ = 0, tokens_ = 0;
    std::unique_ptr<uint32_t[]> packed_;
    std::unique_ptr<float[]> scales_;  // of integers
};

// What a sweep computes: one weight, or a gate and the weight that it is multiplied with.
struct Work {
    const Problem& problem;
    const Problem* gate;
    Activation activation;

    int64_t rows() const { return grid_rows(problem); }

    // Of the rows before `row`: their blocks, and one each for writing the result.
    int64_t cost(int64_t row) const {
        return problem.crow_indices[row] + (gate == nullptr ? 0 : gate->crow_indices[row]) + row;
    }
};

// The first row of blocks of a share, when all rows are split into `shares` of equal cost.
int64_t first_row(const Work& work, int64_t share, int64_t shares) {
    const int64_t goal = work.cost(work.rows()) * share / shares;
    int64_t low = 0, high = work.rows();
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (work.cost(middle) < goal)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

class Sweep {
   public:
    Sweep(const Kernel& kernel, const Work& work, const Panel& panel, int threads)
        : kernel_(kernel), work_(work), panel_(panel), threads_(threads) {
        const int64_t wanted = threads == 1 ? 1 : threads * kChunksPerThread;
        row_shares_ = std::min(work.rows(), wanted);
        // Splitting tokens makes threads stream the same blocks, so only when there are too few rows.
        const int64_t groups = row_shares_ >= 2 * threads ? 1 : divide_up(2 * threads, row_shares_);
        tile_shares_ = threads == 1 ? 1 : std::min(panel.tiles(), groups);
        if (work.gate == nullptr) return;
        gate_size_ = work.problem.block_rows * kernel.widest;
        gates_.reset(new float[static_cast<size_t>(row_shares_ * tile_shares_ * gate_size_)]);
    }

    int64_t run() {
        parallel_for(row_shares_ * tile_shares_, threads_, [&](int64_t i) {
            const int64_t found = share(i);
            if (found != kAllResident) missing_.store(found, std::memory_order_relaxed);
        });
        return missing_.load(std::memory_order_relaxed);
    }

   private:
    int64_t share(int64_t i) const {
        const int64_t row_share = i / tile_shares_, tile_share = i % tile_shares_;
        const int64_t end_row = first_row(work_, row_share + 1, row_shares_);
        const int64_t first_tile = panel_.tiles() * tile_share / tile_shares_;
        const int64_t end_tile = panel_.tiles() * (tile_share + 1) / tile_shares_;
        float* gate = gates_ == nullptr ? nullptr : gates_.get() + i * gate_size_;
        Factor other(*this, &work_.problem), gated(*this, work_.gate);
        for (int64_t row = first_row(work_, row_share, row_shares_); row < end_row; ++row) {
            for (Factor* factor : {&gated, &other}) {
                const int64_t found = factor->prepare(row);
                if (found != kAllResident) return found;
            }
            for (int64_t tile = first_tile; tile < end_tile; ++tile) {
                const int64_t found = sweep(panel_.tile(tile), row, gate, gated, other);
                if (found != kAllResident) return found;
            }
        }
        return kAllResident;
    }

    // A weight as the kernel takes it: its blocks as they are, or a row of them in bfloat16 after the other.
    class Factor {
       public:
        Factor(const Sweep& sweep, const Problem* problem) : kernel_(sweep.kernel_), problem_(problem) {
            // The number of tokens in a panel doesn't depend on that of threads, and so the result doesn't either.
            if (problem == nullptr || kernel_.dequantise_row == nullptr || !scaled(problem->weight_dtype) ||
                problem->block_rows % kOutputsAtOnce != 0 || sweep.panel_.tokens() < kernel_.least_tokens)
                return;
            wide_.emplace(*problem);
            if (!wide_->has_room()) wide_.reset();
        }

        int64_t prepare(int64_t row) { return wide_ ? wide_->fill(kernel_, *problem_, row) : kAllResident; }

        const Problem& problem() const { return wide_ ? wide_->problem() : *problem_; }

       private:
        const Kernel& kernel_;
        const Problem* problem_;
        std::optional<WideRow> wide_;
    };

    int64_t sweep(Tile tile, int64_t row, float* gate, const Factor& gated, const Factor& other) const {
        tile.activation = work_.activation;
        if (gate != nullptr) {
            tile.gate_out = gate;
            const int64_t found = kernel_.sweep(gated.problem(), tile, row);
            if (found != kAllResident) return found;
            tile.gate_out = nullptr;
            tile.gate = gate;
        }
        return kernel_.sweep(other.problem(), tile, row);
    }

    const Kernel& kernel_;
    const Work& work_;
    const Panel& panel_;
    int threads_;
    int64_t row_shares_, tile_shares_;
    int64_t gate_size_ = 0;
    std::unique_ptr<float[]> gates_;  // one for each share, taken before there are threads that mustn't throw
    std::atomic<int64_t> missing_{kAllResident};
};

int useful_threads(const Work& work, int threads) {
    const Problem& p = work.problem;
    return work.cost(work.rows()) * p.block_rows * p.block_cols * p.tokens < kSerialWork ? 1 : threads;
}

int64_t run(const Kernel& best, const Work& work, int threads) {
    const Kernel& kernel = suitable(best, work.problem);
    threads = useful_threads(work, threads);
    Panel panel(kernel, work.problem);
    for (int64_t token = 0; token < work.problem.tokens; token += panel.capacity()) {
        panel.fill(token, threads);
        const int64_t missing = Sweep(kernel, work, panel, threads).run();
        if (missing != kAllResident) return missing;
    }
    return kAllResident;
}

}  // namespace

const Kernel& suitable(const Kernel& kernel, const Problem& problem) {
    return kernel.suits(problem) || kernel.otherwise == nullptr ? kernel : suitable(*kernel.otherwise, problem);
}

int64_t paged_linear(const Kernel& kernel, const Problem& problem, int threads) {
    return run(kernel, {problem, nullptr, Activation::silu}, threads);
}

int64_t paged_gated(const Kernel& kernel, const Problem& gate, const Problem& problem, Activation activation,
                    int threads) {
    return run(kernel, {problem, &gate, activation}, threads);
}

}  // namespace weightpager

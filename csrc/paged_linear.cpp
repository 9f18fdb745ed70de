#include "paged_linear.hpp"

#include <algorithm>
#include <atomic>
#include <memory>

#include "bfloat16.hpp"
#include "parallel.hpp"

namespace weightpager {
namespace {

constexpr int64_t kPanelBytes = 1 << 20;           // of widened activations; one full tile if that is more
constexpr int64_t kPanelBytesPerThread = 1 << 18;  // packing less than this is done before another thread wakes up
constexpr int64_t kPackedInputs = 64;              // at a time, so that what they are spread over stays cached
constexpr int64_t kSerialWork = 1 << 16;           // multiplications that are done before other threads have woken up
constexpr int64_t kChunksPerThread = 8;            // so that a thread that is held up doesn't hold up the rest

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Some of the tokens, cut into tiles and widened to float32. Padded with zeros, which makes an odd number of
// input features even and the last tile as wide as the kernel wants it; and packed, since rows of activations a
// power of two apart would compete for the same cache lines.
class Panel {
   public:
    Panel(const Kernel& kernel, const Problem& problem)
        : kernel_(kernel), p_(problem), inputs_(divide_up(problem.in_features, 2) * 2) {
        const int64_t tile_bytes = inputs_ * kernel.widest * int64_t{sizeof(float)};
        const int64_t tiles = std::max<int64_t>(1, kPanelBytes / tile_bytes);
        capacity_ = std::min(tiles, divide_up(problem.tokens, kernel.widest)) * kernel.widest;
        packed_.reset(new float[static_cast<size_t>(capacity_ * inputs_)]);
    }

    int64_t capacity() const { return capacity_; }
    int64_t tiles() const { return divide_up(tokens_, kernel_.widest); }

    void fill(int64_t first_token, int threads) {
        first_ = first_token;
        tokens_ = std::min(capacity_, p_.tokens - first_token);
        const int64_t useful = 1 + tokens_ * inputs_ * int64_t{sizeof(float)} / kPanelBytesPerThread;
        parallel_for(tiles(), static_cast<int>(std::min<int64_t>(threads, useful)), [&](int64_t i) { pack(i); });
    }

    Tile tile(int64_t i) const {
        const int64_t before = i * kernel_.widest;
        const int tokens = static_cast<int>(std::min<int64_t>(kernel_.widest, tokens_ - before));
        return {packed_.get() + before * inputs_, first_ + before, tokens, kernel_.width(tokens)};
    }

   private:
    void pack(int64_t i) {
        const Tile to = tile(i);
        float* packed = packed_.get() + i * kernel_.widest * inputs_;
        if (to.tokens < to.width || inputs_ > p_.in_features) std::fill_n(packed, inputs_ * to.width, 0.0f);
        for (int64_t input = 0; input < p_.in_features; input += kPackedInputs)
            for (int64_t t = 0; t < to.tokens; ++t) {
                const int64_t from = (to.first_token + t) * p_.in_features + input;
                const int64_t inputs = std::min(kPackedInputs, p_.in_features - input);
                float* column = packed + input * to.width + t;
                if (p_.dtype == Dtype::float32)
                    spread(static_cast<const float*>(p_.x) + from, inputs, column, to.width);
                else
                    spread(static_cast<const uint16_t*>(p_.x) + from, inputs, column, to.width);
            }
    }

    static float widen(float value) { return value; }
    static float widen(uint16_t value) { return from_bfloat16(value); }

    template <class T>
    static void spread(const T* from, int64_t count, float* to, int64_t stride) {
        for (int64_t i = 0; i < count; ++i) to[i * stride] = widen(from[i]);
    }

    const Kernel& kernel_;
    const Problem& p_;
    int64_t inputs_, capacity_, first_ = 0, tokens_ = 0;
    std::unique_ptr<float[]> packed_;
};

// The first row of blocks of a share, when rows 0 .. grid_rows are split into `shares` of equal work. A row costs
// its blocks, and one for writing the result.
int64_t first_row(const Problem& p, int64_t share, int64_t shares) {
    const int64_t rows = grid_rows(p), goal = (p.crow_indices[rows] + rows) * share / shares;
    int64_t low = 0, high = rows;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (p.crow_indices[middle] + middle < goal)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

class Sweep {
   public:
    Sweep(const Kernel& kernel, const Problem& problem, const Panel& panel, int threads)
        : kernel_(kernel), p_(problem), panel_(panel), threads_(threads) {
        const int64_t wanted = threads == 1 ? 1 : threads * kChunksPerThread;
        row_shares_ = std::min(grid_rows(problem), wanted);
        // Splitting tokens makes threads stream the same blocks, so only when there are too few rows.
        const int64_t groups = row_shares_ >= 2 * threads ? 1 : divide_up(2 * threads, row_shares_);
        tile_shares_ = threads == 1 ? 1 : std::min(panel.tiles(), groups);
    }

    int64_t run() {
        parallel_for(row_shares_ * tile_shares_, threads_, [&](int64_t i) {
            const int64_t found = share(i / tile_shares_, i % tile_shares_);
            if (found != kAllResident) missing_.store(found, std::memory_order_relaxed);
        });
        return missing_.load(std::memory_order_relaxed);
    }

   private:
    int64_t share(int64_t row_share, int64_t tile_share) const {
        const int64_t end_row = first_row(p_, row_share + 1, row_shares_);
        const int64_t first_tile = panel_.tiles() * tile_share / tile_shares_;
        const int64_t end_tile = panel_.tiles() * (tile_share + 1) / tile_shares_;
        for (int64_t row = first_row(p_, row_share, row_shares_); row < end_row; ++row)
            for (int64_t tile = first_tile; tile < end_tile; ++tile) {
                const int64_t found = kernel_.sweep(p_, panel_.tile(tile), row);
                if (found != kAllResident) return found;
            }
        return kAllResident;
    }

    const Kernel& kernel_;
    const Problem& p_;
    const Panel& panel_;
    int threads_;
    int64_t row_shares_, tile_shares_;
    std::atomic<int64_t> missing_{kAllResident};
};

int useful_threads(const Problem& p, int threads) {
    const int64_t work = p.crow_indices[grid_rows(p)] * p.block_rows * p.block_cols * p.tokens;
    return work < kSerialWork ? 1 : threads;
}

}  // namespace

int64_t paged_linear(const Kernel& kernel, const Problem& problem, int threads) {
    threads = useful_threads(problem, threads);
    Panel panel(kernel, problem);
    for (int64_t token = 0; token < problem.tokens; token += panel.capacity()) {
        panel.fill(token, threads);
        const int64_t missing = Sweep(kernel, problem, panel, threads).run();
        if (missing != kAllResident) return missing;
    }
    return kAllResident;
}

}  // namespace weightpager

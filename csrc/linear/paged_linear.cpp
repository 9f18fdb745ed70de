#include "paged_linear.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>

#include "divide.hpp"
#include "packing.hpp"
#include "parallel.hpp"
#include "wide_row.hpp"

namespace weightpager {
namespace {

constexpr int64_t kPanelBytes = 1 << 19;           // of packed activations; one full tile if that is more
constexpr int64_t kPanelBytesPerThread = 1 << 17;  // packing less than this is done before another thread wakes up
constexpr int64_t kSerialWork = 1 << 16;           // multiplications that are done before other threads have woken up
constexpr int64_t kOutputsAtOnce = 16;             // of a block that is dequantised
constexpr int64_t kChunksPerThread = 8;            // so that a thread that is held up doesn't hold up the rest

bool begins(const char* text, const char* with) { return std::strncmp(text, with, std::strlen(with)) == 0; }

// What a machine packs with that runs a kernel: one for newer instructions is named after those that it goes beyond, and
// "amx_bf16" needs AVX-512.
Pack* pack_for([[maybe_unused]] const Kernel& kernel) {
#if defined(WEIGHTPAGER_X86)
    if (begins(kernel.name, "avx512") || begins(kernel.name, "amx")) return pack_avx512;
    if (begins(kernel.name, "avx2")) return pack_avx2;
#endif
    return pack_generic;
}

// Some of the tokens, cut into tiles and packed as the kernel wants them: the values of a tile's tokens for one input,
// or one pair of them, lie together. Padded with zeros, which makes an odd number of input features even and the last
// tile as wide as the kernel wants it.
class Panel {
   public:
    Panel(const Kernel& kernel, const Problem& problem) : kernel_(kernel), p_(problem), pack_(pack_for(kernel)) {
        rows_ = packed_rows(kernel.packing, problem.in_features);
        const int64_t tile_bytes = rows_ * kernel.widest * int64_t{sizeof(uint32_t)};
        const int64_t tiles = std::max<int64_t>(1, kPanelBytes / tile_bytes);
        capacity_ = std::min(tiles * kernel.widest, problem.tokens);
        // One tile is as wide as its tokens are: few of them shouldn't ask for memory of many.
        const int64_t columns = capacity_ <= kernel.widest ? kernel.width(static_cast<int>(capacity_))
                                                           : divide_up(capacity_, kernel.widest) * kernel.widest;
        packed_.reset(new uint32_t[static_cast<size_t>(columns * rows_)]);
        if (integers()) scales_.reset(new float[static_cast<size_t>(columns * groups())]);
        if (kernel.packing == Packing::bytes) sums_.reset(new int32_t[static_cast<size_t>(columns * groups())]);
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
                part(scales_, i),
                part(sums_, i)};
    }

   private:
    bool integers() const { return kernel_.packing == Packing::integers || kernel_.packing == Packing::bytes; }

    // Of inputs that have a scale in common.
    int64_t groups() const { return divide_up(p_.in_features, p_.block_cols); }

    void pack(int64_t i) {
        const Tile to = tile(i);
        pack_(kernel_.packing, p_, to, packed_.get() + i * kernel_.widest * rows_, part(scales_, i), part(sums_, i));
    }

    // Of tile i.
    template <class T>
    T* part(const std::unique_ptr<T[]>& of_groups, int64_t i) const {
        return of_groups == nullptr ? nullptr : of_groups.get() + i * kernel_.widest * groups();
    }

    const Kernel& kernel_;
    const Problem& p_;
    Pack* pack_;
    int64_t rows_, capacity_, first_ = 0, tokens_ = 0;
    std::unique_ptr<uint32_t[]> packed_;
    std::unique_ptr<float[]> scales_;  // of integers
    std::unique_ptr<int32_t[]> sums_;  // of bytes
};

// What a sweep computes: one weight, or a gate and the weight that it is multiplied with.
struct Work {
    const Problem& problem;
    const Problem* gate;
    Unary activation;

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
    return kernel.supports(problem) || kernel.fallback == nullptr ? kernel : suitable(*kernel.fallback, problem);
}

int64_t paged_linear(const Kernel& kernel, const Problem& problem, int threads) {
    return run(kernel, {problem, nullptr, Unary::none}, threads);
}

int64_t paged_gated(const Kernel& kernel, const Problem& gate, const Problem& problem, Unary activation, int threads) {
    return run(kernel, {problem, &gate, activation}, threads);
}

}  // namespace weightpager

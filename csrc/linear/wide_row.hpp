// A row of blocks multiplied by their scales once, for all tiles of tokens that it meets.
#pragma once

#include <algorithm>
#include <memory>
#include <new>

#include "divide.hpp"
#include "paged_linear.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

// A weight in bfloat16 with blocks in one row only, all of them in one page in the order of their columns.
class WideRow {
   public:
    explicit WideRow(const Problem& p) : wide_(p), rows_(grid_rows(p)) {
        int64_t most = 1;
        for (int64_t row = 0; row < rows_; ++row) most = std::max(most, kept(p, row));
        wide_.weight_dtype = Dtype::bfloat16;
        wide_.page_bytes = most * block_bytes(wide_);
        wide_.blocks_per_page = most;
        wide_.slots = 1;
        blocks_.reset(new (std::nothrow) Line[static_cast<size_t>(divide_up(wide_.page_bytes, kLine))]);
        crow_indices_.reset(new (std::nothrow) int32_t[static_cast<size_t>(rows_) + 1]);
        locations_.reset(new (std::nothrow) int32_t[static_cast<size_t>(most)]);
        if (!has_room()) return;
        for (int64_t k = 0; k < most; ++k) locations_[static_cast<size_t>(k)] = static_cast<int32_t>(k);
        wide_.arena = blocks_[0].bytes;
        wide_.page_table = &slot_;
        wide_.crow_indices = crow_indices_.get();
        wide_.locations = locations_.get();
    }

    // False where memory is short.
    bool has_room() const { return blocks_ != nullptr && crow_indices_ != nullptr && locations_ != nullptr; }

    // Returns as `dequantise_row` does.
    int64_t fill(const Kernel& kernel, const PagedMatrix& p, int64_t row) {
        // Of these a sweep of this row reads three.
        crow_indices_[static_cast<size_t>(row)] = 0;
        crow_indices_[static_cast<size_t>(row) + 1] = crow_indices_[static_cast<size_t>(rows_)] =
            static_cast<int32_t>(kept(p, row));
        wide_.col_indices = p.col_indices + p.crow_indices[row];
        return kernel.dequantise_row(p, row, blocks_[0].bytes);
    }

    const Problem& problem() const { return wide_; }

   private:
    static constexpr int64_t kLine = 64;

    struct alignas(kLine) Line {
        uint8_t bytes[kLine];
    };

    static int64_t kept(const PagedMatrix& p, int64_t row) { return p.crow_indices[row + 1] - p.crow_indices[row]; }

    Problem wide_;
    int64_t rows_;
    const int32_t slot_ = 0;
    std::unique_ptr<Line[]> blocks_;
    std::unique_ptr<int32_t[]> crow_indices_, locations_;
};

}  // namespace
}  // namespace weightpager

// Rows of a whole weight that lies in blocks whose rows have scales, looked up as an embedding's are.
#pragma once

#include <cstdint>

#include "linear/dtype.hpp"

namespace weightpager {

// Each row of blocks is a page: the numbers of its `blocks` blocks, and behind them their scales (docs/bundle-format.md).
struct BlockRows {
    const uint8_t* pages;
    int64_t blocks, block_rows, block_cols;
    Dtype dtype;  // int8 or int4
    int64_t columns;
};

// Writes row `ids[i]` to row i of `out`, float32 or bfloat16 [count, columns]. A value is its number times its scale:
// exact in float32, and rounded to nearest, ties to even, in bfloat16.
void look_up_rows(const BlockRows& table, const int64_t* ids, int64_t count, void* out, bool bfloat16);

}  // namespace weightpager

// Rows of a table that is only looked up: int8 numbers and a bfloat16 scale behind them, at any address.
#pragma once

#include <cstdint>

namespace weightpager {

// Widens rows. Row i of `count` has its `columns` numbers at `base + offsets[i]`, its scale behind them, and goes to row
// `at[i]` of `out`, which is float32 or bfloat16 without gaps. A value is its number times the scale: exact in float32,
// and rounded to nearest, ties to even, in bfloat16.
void widen_rows(const uint8_t* base, const int64_t* offsets, const int64_t* at, int64_t count, int64_t columns,
                void* out, bool bfloat16);

}  // namespace weightpager

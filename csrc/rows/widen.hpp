// Rows of a table that is only looked up: int8 numbers and a bfloat16 scale behind them, at any address.
#pragma once

#include <cstdint>

namespace weightpager {

// Widens a row of `columns` numbers, its scale behind them, into row `at` of `out`, which is float32 or bfloat16 without
// gaps. A value is its number times the scale: exact in float32, and rounded to nearest, ties to even, in bfloat16.
void widen_row(const uint8_t* row, int64_t columns, int64_t at, void* out, bool bfloat16);

// Widens rows. Row i of `count` is at `base + offsets[i]` and goes to row `at[i]` of `out`.
void widen_rows(const uint8_t* base, const int64_t* offsets, const int64_t* at, int64_t count, int64_t columns,
                void* out, bool bfloat16);

}  // namespace weightpager

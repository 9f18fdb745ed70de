#include "widen.hpp"

#include <cstring>

#include "bfloat16.hpp"

namespace weightpager {
namespace {

float scale_of(const uint8_t* row, int64_t columns) {
    uint16_t bits;
    std::memcpy(&bits, row + columns, sizeof bits);  // at any address
    return from_bfloat16(bits);
}

}  // namespace

void widen_row(const uint8_t* row, int64_t columns, int64_t at, void* out, bool bfloat16) {
    const auto* numbers = reinterpret_cast<const int8_t*>(row);
    const float scale = scale_of(row, columns);
    if (bfloat16) {
        auto* to = static_cast<uint16_t*>(out) + at * columns;
        for (int64_t c = 0; c < columns; ++c) to[c] = to_bfloat16(static_cast<float>(numbers[c]) * scale);
    } else {
        auto* to = static_cast<float*>(out) + at * columns;
        for (int64_t c = 0; c < columns; ++c) to[c] = static_cast<float>(numbers[c]) * scale;
    }
}

void widen_rows(const uint8_t* base, const int64_t* offsets, const int64_t* at, int64_t count, int64_t columns,
                void* out, bool bfloat16) {
    for (int64_t i = 0; i < count; ++i) widen_row(base + offsets[i], columns, at[i], out, bfloat16);
}

}  // namespace weightpager

#include "rows.hpp"

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

void widen_rows(const uint8_t* base, const int64_t* offsets, const int64_t* at, int64_t count, int64_t columns,
                void* out, bool bfloat16) {
    for (int64_t i = 0; i < count; ++i) {
        const uint8_t* row = base + offsets[i];
        const auto* numbers = reinterpret_cast<const int8_t*>(row);
        const float scale = scale_of(row, columns);
        if (bfloat16) {
            auto* to = static_cast<uint16_t*>(out) + at[i] * columns;
            for (int64_t c = 0; c < columns; ++c) to[c] = to_bfloat16(static_cast<float>(numbers[c]) * scale);
        } else {
            auto* to = static_cast<float*>(out) + at[i] * columns;
            for (int64_t c = 0; c < columns; ++c) to[c] = static_cast<float>(numbers[c]) * scale;
        }
    }
}

}  // namespace weightpager

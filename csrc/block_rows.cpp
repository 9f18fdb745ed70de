#include "block_rows.hpp"

#include <algorithm>
#include <cstring>

#include "bfloat16.hpp"

namespace weightpager {
namespace {

constexpr int64_t kMostColumns = 256;  // of a block
constexpr int kFirstBit[8] = {0, 16, 8, 24, 4, 20, 12, 28};  // of each input of a word of int4

// One row of one block, whose first neighbouring inputs begin at `first`.
void widen_int8(const uint8_t* first, const BlockRows& table, float scale, float* to) {
    for (int64_t c = 0; c < table.block_cols; c += 2, first += 2 * table.block_rows) {
        to[c] = static_cast<float>(static_cast<int8_t>(first[0])) * scale;
        to[c + 1] = static_cast<float>(static_cast<int8_t>(first[1])) * scale;
    }
}

void widen_int4(const uint8_t* first, const BlockRows& table, float scale, float* to) {
    for (int64_t c = 0; c < table.block_cols; c += 8, first += 4 * table.block_rows) {
        uint32_t word;
        std::memcpy(&word, first, sizeof word);
        for (int i = 0; i < 8; ++i)
            to[c + i] = static_cast<float>(static_cast<int>(word >> kFirstBit[i] & 15) - 8) * scale;
    }
}

void write(const float* values, int64_t count, void* out, int64_t at, bool bfloat16) {
    if (bfloat16)
        std::transform(values, values + count, static_cast<uint16_t*>(out) + at, to_bfloat16);
    else
        std::copy(values, values + count, static_cast<float*>(out) + at);
}

}  // namespace

void look_up_rows(const BlockRows& table, const int64_t* ids, int64_t count, void* out, bool bfloat16) {
    const bool int4 = table.dtype == Dtype::int4;
    const int64_t together = word_bytes(table.dtype);
    const int64_t block_bytes = table.block_rows * table.block_cols * element_bits(table.dtype) / 8;
    const int64_t numbers_bytes = table.blocks * block_bytes;
    const int64_t page_bytes = numbers_bytes + table.blocks * table.block_rows * 2;
    float values[kMostColumns];
    for (int64_t i = 0; i < count; ++i) {
        const uint8_t* page = table.pages + ids[i] / table.block_rows * page_bytes;
        const int64_t row = ids[i] % table.block_rows;
        for (int64_t block = 0; block < table.blocks; ++block) {
            uint16_t bits;
            std::memcpy(&bits, page + numbers_bytes + 2 * (block * table.block_rows + row), sizeof bits);
            const uint8_t* first = page + block * block_bytes + row * together;
            (int4 ? widen_int4 : widen_int8)(first, table, from_bfloat16(bits), values);
            const int64_t column = block * table.block_cols;
            const int64_t here = std::min(table.block_cols, table.columns - column);
            write(values, here, out, i * table.columns + column, bfloat16);
        }
    }
}

}  // namespace weightpager

// Tile registers: AMX itself, or, with WEIGHTPAGER_EMULATED_TILES, the same in plain C++, so that a machine without AMX can
// test what is built on them.
#pragma once

#include <cstdint>
#include <cstring>

#include "bfloat16.hpp"

#if !defined(WEIGHTPAGER_EMULATED_TILES)
#include <immintrin.h>
#endif

namespace weightpager {
namespace {  // see bfloat16.hpp

// Palette 1, and 16 rows of 64 bytes in each of the eight registers.
struct alignas(64) TileConfiguration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfiguration) == 64);

#if defined(WEIGHTPAGER_EMULATED_TILES)

struct EmulatedTile {
    uint8_t row[16][64];
};

inline EmulatedTile& tile_register(int number) {
    static thread_local EmulatedTile tiles[8];
    return tiles[number];
}

inline void emulate_load(int number, const void* from, int64_t stride) {
    for (int64_t row = 0; row < 16; ++row)
        std::memcpy(tile_register(number).row[row], static_cast<const uint8_t*>(from) + row * stride, 64);
}

inline void emulate_store(int number, void* to, int64_t stride) {
    for (int64_t row = 0; row < 16; ++row)
        std::memcpy(static_cast<uint8_t*>(to) + row * stride, tile_register(number).row[row], 64);
}

// TDPBF16PS: sum[m][n] += a[m][2k] * b[k][2n] + a[m][2k + 1] * b[k][2n + 1].
inline void emulate_dot(int sum, int a, int b) {
    float total[16][16];
    uint16_t left[16][32], right[16][32];
    std::memcpy(total, &tile_register(sum), sizeof total);
    std::memcpy(left, &tile_register(a), sizeof left);
    std::memcpy(right, &tile_register(b), sizeof right);
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 16; ++n)
                for (int odd = 0; odd < 2; ++odd)
                    total[m][n] += from_bfloat16(left[m][2 * k + odd]) * from_bfloat16(right[k][2 * n + odd]);
    std::memcpy(&tile_register(sum), total, sizeof total);
}

#define WEIGHTPAGER_TILE_CONFIGURE() \
    do {                             \
    } while (false)
#define WEIGHTPAGER_TILE_RELEASE() WEIGHTPAGER_TILE_CONFIGURE()
#define WEIGHTPAGER_TILE_ZERO(number) tile_register(number) = {}
#define WEIGHTPAGER_TILE_LOAD(number, from, stride) emulate_load(number, from, stride)
#define WEIGHTPAGER_TILE_STORE(number, to, stride) emulate_store(number, to, stride)
#define WEIGHTPAGER_TILE_DOT(sum, a, b) emulate_dot(sum, a, b)

#else

constexpr TileConfiguration kTileConfiguration;

// GCC isn't told that loading a tile reads memory: on its own it leaves out, or puts off, what is written for the tile.
inline __attribute__((always_inline)) void settle(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

#define WEIGHTPAGER_TILE_CONFIGURE() _tile_loadconfig(&kTileConfiguration)
#define WEIGHTPAGER_TILE_RELEASE() _tile_release()
#define WEIGHTPAGER_TILE_ZERO(number) _tile_zero(number)
#define WEIGHTPAGER_TILE_LOAD(number, from, stride) \
    do {                                            \
        settle(from);                               \
        _tile_loadd(number, from, stride);          \
        settle(from);                               \
    } while (false)
#define WEIGHTPAGER_TILE_STORE(number, to, stride) _tile_stored(number, to, stride)
#define WEIGHTPAGER_TILE_DOT(sum, a, b) _tile_dpbf16ps(sum, a, b)

#endif

}  // namespace
}  // namespace weightpager

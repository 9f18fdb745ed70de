#pragma once

#include <cstdint>
#include <cstring>

namespace weightpager {
// Unnamed: this header is compiled for several instruction sets, and the linker must never take one's copy of a
// function for another's.
namespace {

inline float from_bfloat16(uint16_t half) {
    uint32_t bits = uint32_t{half} << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To nearest, ties to even; NaN stays NaN. As torch does it.
inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

}  // namespace
}  // namespace weightpager

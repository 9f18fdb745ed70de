#pragma once

#include <cstdint>
#include <cstring>

namespace weightpager {

// A float16 of IEEE 754, by its bits.
struct Half {
    uint16_t bits;
};

namespace {  // see bfloat16.hpp

// Exponents of float16 and float32 differ by 112: a float times 2^-112 has a half's exponent, and its bits 13 places
// further up; numbers too small for a half's exponent become the denormal ones of both.
constexpr float kHalfExponent = 1.925929944387235853e-34f, kFloatExponent = 5.192296858534827629e33f;
constexpr float kLargestHalf = 65504.0f;

// To nearest, ties to even; what is too large becomes the largest number, and NaN stays NaN.
inline Half to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    const bool number = bits <= 0x7f800000u;
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof bits);
    magnitude = magnitude < kLargestHalf ? magnitude : kLargestHalf;
    magnitude *= kHalfExponent;
    std::memcpy(&bits, &magnitude, sizeof bits);
    const uint32_t rounded = (bits + 0xfffu + (bits >> 13 & 1u)) >> 13;
    return {static_cast<uint16_t>(sign | (number ? rounded : 0x7e00u))};
}

}  // namespace
}  // namespace weightpager

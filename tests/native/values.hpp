// Numbers as the kernels find them in memory. Written apart from csrc/bfloat16.hpp, so as not to share its mistakes.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "linear/paged_linear.hpp"
#include "random.hpp"

inline double read_value(const uint8_t* from, weightpager::Dtype dtype) {
    uint32_t bits = 0;
    if (dtype == weightpager::Dtype::float32)
        std::memcpy(&bits, from, 4);
    else
        std::memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, from, 2);
    float value;
    std::memcpy(&value, &bits, 4);
    return double{value};
}

// A bfloat16 is cut off, not rounded: it is random either way.
inline void write_value(uint8_t* to, weightpager::Dtype dtype, float value) {
    if (dtype == weightpager::Dtype::float32)
        std::memcpy(to, &value, 4);
    else
        std::memcpy(to, reinterpret_cast<const uint8_t*>(&value) + 2, 2);
}

// Values in [-1, 1), in an allocation of just their size: AddressSanitizer sees what reads beyond.
inline std::vector<uint8_t> random_values(int64_t count, weightpager::Dtype dtype, Random& random) {
    const int64_t bytes = weightpager::element_bits(dtype) / 8;
    std::vector<uint8_t> values(static_cast<size_t>(count * bytes));
    for (int64_t i = 0; i < count; ++i) write_value(values.data() + i * bytes, dtype, random.number());
    return values;
}

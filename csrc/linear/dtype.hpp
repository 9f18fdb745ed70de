// In which dtypes weights lie in pages, and what tells one from another (src/weightpager/page_dtype.py).
#pragma once

#include <cstdint>

namespace weightpager {

enum class Dtype : int { float32, bfloat16, int8, int4 };

struct DtypeFacts {
    const char* name;
    int bits;        // of a number
    int neighbours;  // inputs of an output that lie together
    bool scaled;     // whether each row of a block has a scale
};

constexpr DtypeFacts kDtypes[] = {
    {"float32", 32, 1, false}, {"bfloat16", 16, 2, false}, {"int8", 8, 2, true}, {"int4", 4, 8, true}};

namespace {  // as in bfloat16.hpp, and for the same reason

constexpr const DtypeFacts& facts_of(Dtype dtype) { return kDtypes[static_cast<int>(dtype)]; }

constexpr int64_t element_bits(Dtype dtype) { return facts_of(dtype).bits; }

// Bytes of neighbouring inputs.
constexpr int64_t word_bytes(Dtype dtype) { return facts_of(dtype).neighbours * element_bits(dtype) / 8; }

constexpr bool scaled(Dtype dtype) { return facts_of(dtype).scaled; }

}  // namespace

}  // namespace weightpager

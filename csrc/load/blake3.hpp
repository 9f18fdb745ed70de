// BLAKE3 of whole buffers, without a key: https://github.com/BLAKE3-team/BLAKE3-specs.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace weightpager {

using Digest = std::array<uint8_t, 32>;

// How many nodes of a hash tree an instruction set compresses side by side, and by what.
struct Hasher {
    const char* name;
    size_t lanes;
    // Compresses `blocks` blocks of 64 bytes of each of `lanes` inputs; the results lie as [lanes][8]. `counters` are the
    // chunks' numbers, 0 for parents. The first block has the flags `start` too; the last one, of which `last` bytes
    // count and the rest is zero, has the flags `end`.
    void (*compress)(const uint8_t* const* inputs, size_t blocks, size_t last, const uint32_t* counters, uint32_t flags,
                     uint32_t start, uint32_t end, uint32_t* results);
};

// Those that this processor has, best first.
const std::vector<const Hasher*>& hashers();

// The digests of `count` buffers of `length` bytes each. Chunks of all of them are compressed side by side.
void blake3(const Hasher& hasher, const uint8_t* const* buffers, size_t count, size_t length, Digest* digests);

}  // namespace weightpager

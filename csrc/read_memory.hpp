// How fast memory can be read: the floor under every kernel that must see all of its weights.
#pragma once

#include <cstdint>

namespace weightpager {

// Reads every cache line of `bytes` bytes, in as many shares as there are threads. Returns what keeps the compiler from
// leaving the loads out.
uint64_t read_all(const uint8_t* memory, int64_t bytes, int threads);

}  // namespace weightpager

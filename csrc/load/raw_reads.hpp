// The yardstick of the read queue: the same reads by plain threads.
#pragma once

#include <vector>

#include "read.hpp"

namespace weightpager {

// Seconds that reads take when `threads` threads each make one after the other, hash included. The threads wait at the
// start before the clock runs. Negative if a read failed or a page isn't what it should be.
double time_raw_reads(std::vector<Read> reads, unsigned threads, const Hasher& hasher);

}  // namespace weightpager

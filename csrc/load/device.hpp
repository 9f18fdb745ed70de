// The border to the system calls: keeps reads in flight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "read.hpp"

namespace weightpager {

// `begin` and `wait` are called by one thread at a time, `wake` by any.
class Device {
   public:
    virtual ~Device() = default;

    virtual const char* name() const = 0;

    // Begins a system call that fills a read's views from `offset + done` on. The read stays where it is until it ended.
    virtual void begin(Read& read) = 0;

    // Waits until a system call has ended, somebody wakes, or so many microseconds have passed; for ever if negative.
    // Adds the reads whose calls have ended, with their results.
    virtual void wait(std::vector<Read*>& ended, int64_t microseconds) = 0;

    // Ends a `wait`, the next one if there is none.
    virtual void wake() = 0;
};

// io_uring by its system calls; nothing where the kernel lacks it or refuses it. At most `depth` reads may be in flight.
// The calling thread is the one that begins and waits, unless the ring is for `any_thread`, which takes a little longer.
std::unique_ptr<Device> open_ring(unsigned depth, bool any_thread = false);

// Threads with `preadv`, one for each read in flight.
std::unique_ptr<Device> open_threads(unsigned threads);

// A ring, or threads where there is none; with `ring` false always threads.
std::unique_ptr<Device> open_device(bool ring, unsigned reads, bool any_thread = false);

}  // namespace weightpager

// The border to the system calls: keeps reads in flight.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
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

    // Whether the system has come to refuse the device's calls, for good: then it adds the reads that never began, and takes
    // no more. What the system has in hand may still end; `wait` doesn't wait for that any more.
    virtual bool refused(std::vector<Read*>& unbegun) {
        static_cast<void>(unbegun);
        return false;
    }
};

// io_uring by its system calls; nothing where the kernel lacks it or refuses it. At most `depth` reads may be in flight.
// The calling thread is the one that begins and waits, unless the ring is for `any_thread`, which takes a little longer.
std::unique_ptr<Device> open_ring(unsigned depth, bool any_thread = false);

// Threads with `preadv`, one for each read in flight, or as many as the process may have.
std::unique_ptr<Device> open_threads(unsigned threads);

// Reads by a device, and once the system refuses that one by as many threads.
std::unique_ptr<Device> or_threads(std::unique_ptr<Device> device, unsigned threads);

// Storage that gives so many bytes a second, to all devices together, one read after the other. Time in which nothing is
// read earns nothing. Any thread may call.
class Pace {
   public:
    using Clock = std::chrono::steady_clock;

    explicit Pace(double bytes_per_second) : rate_(bytes_per_second) {}

    // When the bytes of a read that begins now have arrived.
    Clock::time_point arrival(size_t bytes);

   private:
    const double rate_;
    std::mutex lock_;
    Clock::time_point free_at_;
};

// Reads by another device that end no earlier than this pace lets them.
std::unique_ptr<Device> paced(std::unique_ptr<Device> device, std::shared_ptr<Pace> pace);

// Devices that this process opens from now on read at one pace of so many bytes a second; at none if that is 0. For
// benchmarks, which imitate slow storage without touching the disk of others.
void imitate_storage(double bytes_per_second);

// A ring, or threads where there is none; with `ring` false always threads.
std::unique_ptr<Device> open_device(bool ring, unsigned reads, bool any_thread = false);

}  // namespace weightpager

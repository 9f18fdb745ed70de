// Reads that a thread makes itself and waits for: nothing is handed to another one.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "device.hpp"
#include "read.hpp"

namespace weightpager {

// How long a caller waits.
class Patience {
   public:
    virtual ~Patience() = default;

    // Some of what it waits for has come.
    virtual void came() = 0;

    // Says whether the caller goes on waiting. It is asked each time a slice has passed in which nothing came. No lock is
    // held. It may throw, for Ctrl-C.
    virtual bool left() = 0;
};

struct Outcome {
    Failure failure = Failure::none;
    int error = 0;      // of the storage
    int64_t page = -1;  // the first of the read that failed, or the one that isn't what it should be
    size_t bytes = 0;   // that have been read, checked and used
};

// Where pages are, and what they should be.
struct PagesToRead {
    std::vector<int64_t> pages, offsets;  // ascending
    std::vector<int32_t> files;
    std::vector<uint8_t> expected;  // [pages, 32]

    // For reads into slots of a memory.
    PageSources sources(uint8_t* memory, const int64_t* slots, size_t page_bytes) const {
        return {pages.size(), pages.data(), files.data(), offsets.data(), slots, expected.data(), memory, page_bytes};
    }
};

// Lanes that threads read in, each with a device and memory that pages land in. Any thread may call.
class OwnReads {
   public:
    using Open = std::function<std::unique_ptr<Device>()>;
    using Use = std::function<void(const uint8_t*)>;
    class Flight;

    // At most `depth` reads of a caller are in flight. More callers than there are lanes wait for each other.
    OwnReads(Open open, const Hasher& hasher, size_t depth, size_t lanes = 4);

    // What still hangs is left alone, with its memory.
    ~OwnReads();

    // Reads pages, in reads of at most `most`, checks each, and calls `use` with where they have landed, one behind the
    // other. Storage that hangs keeps the lane until its reads end, and not the caller.
    Outcome read(const PagesToRead& wanted, size_t page_bytes, size_t most, Patience& patience, const Use& use);

    // Begins to read pages, as `read` does; nothing if no lane is free, or it is closed. Never waits.
    std::unique_ptr<Flight> begin(const PagesToRead& wanted, size_t page_bytes, size_t most);

    // Nothing begins any more. Waits for callers that are reading, and for what hangs; false if something still does.
    bool close(std::chrono::microseconds wait);

    const char* device() const;  // empty before the first read

   private:
    struct Lane;
    using Held = std::unique_lock<std::mutex>;

    Lane* take(Patience& patience, Outcome& outcome);
    Lane* free_lane();
    void give_back(Lane& lane);
    void collect_hanging();

    const Open open_;
    const Hasher& hasher_;
    const size_t depth_, most_lanes_;
    const pid_t process_;

    mutable std::mutex lock_;  // of all that follows
    std::condition_variable changed_;
    std::vector<std::unique_ptr<Lane>> lanes_;
    const char* device_name_ = "";
    bool closed_ = false;
};

// Reads on their way in a lane that is the caller's as long as this lives; `reads` outlives it. One thread at a time.
class OwnReads::Flight {
   public:
    Flight(OwnReads& reads, Lane& lane, const PagesToRead& wanted, size_t page_bytes, size_t most);
    Flight(const Flight&) = delete;
    Flight& operator=(const Flight&) = delete;

    // What hangs keeps the lane until it ends.
    ~Flight();

    // Makes the rest of the reads, waits for all and checks each page. The first failure counts; what is in flight then
    // is waited for, and no more begins.
    Outcome wait(Patience& patience);

    size_t reads() const;

    // Where the pages have landed, one behind the other; right once `wait` has found no failure.
    const uint8_t* landed() const { return memory_; }

   private:
    void begin_some();
    void land(Read& read);

    OwnReads& reads_;
    Lane& lane_;
    const uint8_t* memory_ = nullptr;
    size_t next_ = 0;
    Outcome outcome_;
};

}  // namespace weightpager

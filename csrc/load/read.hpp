// One read of pages that follow each other in a file, into slots that needn't.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <vector>

#include "blake3.hpp"

namespace weightpager {

// `hangs` and `closed` are of reads that a thread makes itself.
enum class Failure { none, storage, end_of_file, corrupt, hangs, closed, no_thread };

// A result: there is no thread that could read.
constexpr int64_t kNoThread = INT64_MIN;

// What a read that storage has answered needs.
enum class Progress { again, complete, failed };

struct Read {
    uint64_t load = 0;  // whose read it is
    int priority = 0;   // lower ones go first
    bool cancellable = true;  // may be taken back for other loads; else only withdrawn with its own
    uint64_t number = 0;  // among equals, in this order
    int file = -1;
    int64_t offset = 0;
    size_t page_bytes = 0;
    std::vector<int64_t> pages;
    std::vector<const uint8_t*> slots;  // of each page
    std::vector<Digest> expected;       // of each page
    std::vector<iovec> views;           // the slots, neighbours joined; what is still to be filled

    int64_t result = 0;  // of the latest system call: bytes, or a negative error number
    size_t done = 0;     // bytes that have come

    Failure failure = Failure::none;
    int error = 0;             // of the storage
    int64_t corrupt_page = -1;

    size_t bytes() const { return pages.size() * page_bytes; }

    // Takes in the result of the latest system call. `again` where it was interrupted, or gave less than was asked for:
    // another call is to fill the rest. `failed` has `failure` and `error` say why.
    Progress take_result();

    // Compares every page with its hash.
    void check(const Hasher& hasher);

   private:
    // So many bytes more have come.
    void advance(size_t count);
};

// The pages of a load, each with all that is known of it.
struct PageSources {
    size_t count;
    const int64_t* pages;  // ascending
    const int32_t* files;
    const int64_t* offsets;
    const int64_t* slots;     // numbers
    const uint8_t* expected;  // [count, 32]
    uint8_t* memory;          // of slot 0
    size_t page_bytes;
};

// The reads that bring them: pages that follow each other in a file are one, of at most `most` pages.
std::vector<Read> plan_reads(const PageSources& sources, size_t most);

}  // namespace weightpager

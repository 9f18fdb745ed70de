// A table that is only looked up: rows in memory, and those that are read for a batch by the thread that wants them.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "load/own_reads.hpp"
#include "row_memory.hpp"

namespace weightpager {

// Pages that follow each other in a file, from `first` on, counted from the table's first page.
struct Extent {
    int64_t first;
    int file;
    int64_t offset;
};

// Where a table's pages are.
struct RowFiles {
    int64_t first_page;   // of the bundle
    size_t page_bytes;
    const uint8_t* ids;   // of the table's pages, [32] each
    std::vector<Extent> extents;
    size_t most;          // pages of one read
    size_t bytes_at_once;  // of pages that are read before their rows are taken out
};

// Memory for rows that are looked up, [count, columns] without gaps.
struct Wide {
    void* values;
    bool bfloat16;
};

// What look-ups came to: int64 [5], all guarded by the lock.
struct Tally {
    int64_t *lookups, *hits, *faults, *bytes, *nanoseconds;  // the last: that look-ups took beyond their hits
};

// Any thread may call. The lock is kept neither while storage works nor while what has been read is widened.
class RowLookup {
   public:
    RowLookup(const RowMemory& memory, RowFiles files, std::shared_ptr<OwnReads> reads, Tally tally)
        : memory_(memory), files_(std::move(files)), reads_(std::move(reads)), tally_(tally) {}

    // Writes rows, all of them in the table, to `out`. What memory lacks is read at once and in place of others kept.
    Outcome look_up(const int64_t* ids, int64_t count, const Wide& out, Patience& patience);

    bool has_all(const int64_t* ids, int64_t count) const;

    // Of the memory and the tally.
    std::mutex& lock() { return lock_; }

   private:
    struct Wanted;  // a row that memory lacks, and where it goes

    Outcome fault(std::vector<Wanted>& missing, const Wide& out, Patience& patience);
    Outcome read_some(const Wanted* begin, const Wanted* end, const Wide& out, Patience& patience);
    PagesToRead pages_to_read(const std::vector<int64_t>& pages) const;
    int64_t columns() const { return memory_.row_bytes - 2; }  // and a scale

    RowMemory memory_;
    const RowFiles files_;
    const std::shared_ptr<OwnReads> reads_;
    const Tally tally_;
    std::mutex lock_;
};

}  // namespace weightpager

// A table that is only looked up: rows in memory, and those that are read for a batch by the thread that wants them.
#pragma once

#include <cstdint>
#include <functional>
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

// Reads a table's pages, ascending and counted from its first one, checks each, and calls `use` with where they have landed,
// one behind the other. May throw.
using ReadPages = std::function<Outcome(const std::vector<int64_t>& pages, Patience& patience, const OwnReads::Use& use)>;

// Where a table's pages are in files.
struct RowFiles {
    int64_t first_page;   // of the bundle
    size_t page_bytes;
    const uint8_t* ids;   // of the table's pages, [32] each
    std::vector<Extent> extents;
    size_t most;          // pages of one read

    // Reads there, by the thread that wants the rows.
    ReadPages reading(std::shared_ptr<OwnReads> reads) const;
};

// Memory for rows that are looked up, [count, columns] without gaps; null where nobody wants them.
struct Wide {
    void* values;
    bool bfloat16;
};

// What look-ups came to: int64 [5], all guarded by the lock.
struct Tally {
    int64_t *lookups, *hits, *faults, *bytes, *nanoseconds;  // the last: that look-ups took beyond their hits
};

// Any thread may call. The lock is kept neither while storage works nor while what has been read is widened, and no row is
// pinned: what a batch lacks is read into memory of its own and widened from there, before rows that are kept replace others.
// So a batch may want more rows than there is room for, and nothing that happens to the memory meanwhile can make it wrong.
class RowLookup {
   public:
    // At most `bytes_at_once` of pages are read before their rows are taken out.
    RowLookup(const RowMemory& memory, size_t page_bytes, size_t bytes_at_once, ReadPages read, Tally tally)
        : memory_(memory), page_bytes_(page_bytes), bytes_at_once_(bytes_at_once), read_(std::move(read)), tally_(tally) {}

    // Writes rows, all of them in the table, to `out`. What memory lacks is read at once and in place of others kept.
    Outcome look_up(const int64_t* ids, int64_t count, const Wide& out, Patience& patience);

    // Takes in the most used rows, as many as there is room for.
    Outcome fill(Patience& patience);

    // Writes the whole table to `out`, read from storage; what is in memory stays as it is.
    Outcome read_all(const Wide& out, Patience& patience);

    bool has_all(const int64_t* ids, int64_t count) const;

    void resize(int64_t slots);

    // Of the memory and the tally.
    std::mutex& lock() { return lock_; }

   private:
    struct Wanted;  // a row that memory lacks, and where it goes
    enum class Keep { no, on_trial, yes };

    Outcome fault(std::vector<Wanted>& missing, const Wide& out, Keep keep, Patience& patience);
    Outcome read_some(const Wanted* begin, const Wanted* end, const Wide& out, Keep keep, Patience& patience);
    int64_t columns() const { return memory_.row_bytes - 2; }  // and a scale

    RowMemory memory_;
    const size_t page_bytes_, bytes_at_once_;
    const ReadPages read_;
    const Tally tally_;
    std::mutex lock_;
};

}  // namespace weightpager

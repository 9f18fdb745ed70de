#include "row_lookup.hpp"

#include <algorithm>
#include <chrono>

#include "divide.hpp"
#include "widen.hpp"

namespace weightpager {

struct RowLookup::Wanted {
    int64_t place, row, at;

    bool operator<(const Wanted& other) const { return place != other.place ? place < other.place : at < other.at; }
};

bool RowLookup::has_all(const int64_t* ids, int64_t count) const {
    return std::all_of(ids, ids + count, [&](int64_t id) { return id >= 0 && id < memory_.rows; });
}

Outcome RowLookup::look_up(const int64_t* ids, int64_t count, const Wide& out, Patience& patience) {
    std::vector<Wanted> missing;
    {
        const std::lock_guard<std::mutex> held(lock_);
        memory_.begin_uses(count);
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t* row = memory_.use(ids[i]);
            if (row == nullptr)
                missing.push_back({memory_.places[ids[i]], ids[i], i});
            else
                widen_row(row, columns(), i, out.values, out.bfloat16);
        }
        *tally_.lookups += count;
        *tally_.hits += count - static_cast<int64_t>(missing.size());
    }
    if (missing.empty()) return {};
    const auto start = std::chrono::steady_clock::now();
    const Outcome outcome = fault(missing, out, Keep::on_trial, patience);
    const std::chrono::nanoseconds taken = std::chrono::steady_clock::now() - start;
    const std::lock_guard<std::mutex> held(lock_);
    *tally_.nanoseconds += taken.count();
    return outcome;
}

Outcome RowLookup::fill(Patience& patience) {
    std::vector<Wanted> missing;
    {
        const std::lock_guard<std::mutex> held(lock_);
        for (int64_t row = 0; row < memory_.rows; ++row)
            if (memory_.places[row] < memory_.slots() && memory_.slot_of[row] < 0)
                missing.push_back({memory_.places[row], row, 0});
    }
    const Outcome outcome = fault(missing, {nullptr, false}, Keep::yes, patience);
    const std::lock_guard<std::mutex> held(lock_);
    memory_.age_by_place();
    return outcome;
}

Outcome RowLookup::read_all(const Wide& out, Patience& patience) {
    std::vector<Wanted> missing;
    for (int64_t row = 0; row < memory_.rows; ++row) missing.push_back({memory_.places[row], row, row});
    return fault(missing, out, Keep::no, patience);
}

void RowLookup::resize(int64_t slots) {
    const std::lock_guard<std::mutex> held(lock_);
    memory_.resize(slots);
}

// A piece at a time, so that memory for pages is bounded; a row that occurs twice is in one piece.
Outcome RowLookup::fault(std::vector<Wanted>& missing, const Wide& out, Keep keep, Patience& patience) {
    std::sort(missing.begin(), missing.end());
    const size_t page = page_bytes_, row = static_cast<size_t>(memory_.row_bytes);
    const size_t most = std::max<size_t>(1, bytes_at_once_ / (page * (1 + divide_up(row, page))));
    const Wanted* const end = missing.data() + missing.size();
    size_t bytes = 0;
    for (const Wanted* begin = missing.data(); begin != end;) {
        const Wanted* stop = begin;
        for (size_t rows = 0; stop != end; ++stop) {
            if (stop == begin || stop->place != stop[-1].place) ++rows;
            if (rows > most) break;
        }
        Outcome outcome = read_some(begin, stop, out, keep, patience);
        outcome.bytes = bytes += outcome.bytes;
        if (outcome.failure != Failure::none || stop == end) return outcome;
        begin = stop;
    }
    return {};
}

Outcome RowLookup::read_some(const Wanted* begin, const Wanted* end, const Wide& out, Keep keep, Patience& patience) {
    const auto page = static_cast<int64_t>(page_bytes_);
    std::vector<int64_t> pages, rows, offsets;  // where each row will lie behind where its pages land
    for (const Wanted* one = begin; one != end; ++one) {
        if (one != begin && one->place == one[-1].place) continue;
        const int64_t from = one->place * memory_.row_bytes, last = (from + memory_.row_bytes - 1) / page;
        for (int64_t number = from / page; number <= last; ++number)
            if (pages.empty() || pages.back() < number) pages.push_back(number);
        // Its pages are the last ones, without gaps.
        const auto before = static_cast<int64_t>(pages.size()) - (last - from / page + 1);
        rows.push_back(one->row);
        offsets.push_back(before * page + from % page);
    }
    return read_(pages, patience, [&](const uint8_t* landed) {
        size_t which = 0;
        for (const Wanted* one = begin; out.values != nullptr && one != end; ++one) {
            if (one->row != rows[which]) ++which;
            widen_row(landed + offsets[which], columns(), one->at, out.values, out.bfloat16);
        }
        const std::lock_guard<std::mutex> held(lock_);
        if (keep != Keep::no) memory_.insert(rows, landed, offsets, keep == Keep::on_trial);
        if (keep == Keep::yes) return;  // nobody has looked them up
        *tally_.faults += static_cast<int64_t>(rows.size());
        *tally_.bytes += static_cast<int64_t>(pages.size()) * page;
    });
}

ReadPages RowFiles::reading(std::shared_ptr<OwnReads> reads) const {
    return [files = *this, reads = std::move(reads)](const std::vector<int64_t>& pages, Patience& patience,
                                                     const OwnReads::Use& use) {
        PagesToRead found;
        for (int64_t page : pages) {
            const auto after = std::upper_bound(files.extents.begin(), files.extents.end(), page,
                                                [](int64_t number, const Extent& extent) { return number < extent.first; });
            const Extent& extent = after[-1];
            const uint8_t* id = files.ids + page * static_cast<int64_t>(sizeof(Digest));
            found.pages.push_back(files.first_page + page);
            found.files.push_back(extent.file);
            found.offsets.push_back(extent.offset + (page - extent.first) * static_cast<int64_t>(files.page_bytes));
            found.expected.insert(found.expected.end(), id, id + sizeof(Digest));
        }
        return reads->read(found, files.page_bytes, files.most, patience, use);
    };
}

}  // namespace weightpager

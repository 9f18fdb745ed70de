#include "row_memory.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <queue>
#include <utility>

#include "divide.hpp"

namespace weightpager {
namespace {

constexpr int64_t kPinned = 2;  // one of so many slots belongs to the rows that are used most
constexpr int64_t kTrial = 5;   // one of so many other slots is for rows that were looked up once since they came
constexpr uint8_t kOnce = 0, kAgain = 1, kStays = 2;

}  // namespace

const uint8_t* RowMemory::use(int64_t row) {
    const int32_t slot = slot_of[row];
    if (slot < 0) return nullptr;
    last_use[slot] = static_cast<uint32_t>(++state[2]);
    stay[slot] = std::max(stay[slot], kAgain);
    return stored + slot * row_bytes;
}

void RowMemory::begin_uses(int64_t count) {
    if (state[2] + count <= std::numeric_limits<uint32_t>::max()) return;
    std::fill(last_use, last_use + capacity, 0u);  // once in four billion look-ups nobody knows what is old
    state[2] = 0;
}

bool RowMemory::is_pinned(int64_t row) const { return places[row] < slots() / kPinned; }

void RowMemory::insert(const std::vector<int64_t>& wanted, const uint8_t* base, const std::vector<int64_t>& offsets,
                       bool on_trial) {
    std::vector<size_t> absent;
    for (size_t i = 0; i < wanted.size(); ++i)
        if (slot_of[wanted[i]] < 0) absent.push_back(i);
    const std::vector<int32_t> found = slots_for(static_cast<int64_t>(absent.size()));
    begin_uses(static_cast<int64_t>(found.size()));
    for (int32_t slot : found)
        if (slot < filled()) slot_of[row_in[slot]] = -1;
    for (size_t i = found.size(); i-- > 0;) {  // the most wanted is the youngest
        const int64_t row = wanted[absent[i]];
        const int32_t slot = found[i];
        slot_of[row] = slot;
        row_in[slot] = static_cast<int32_t>(row);
        last_use[slot] = static_cast<uint32_t>(++state[2]);
        stay[slot] = is_pinned(row) ? kStays : on_trial ? kOnce : kAgain;
        std::memcpy(stored + slot * row_bytes, base + offsets[absent[i]], static_cast<size_t>(row_bytes));
    }
    for (int32_t slot : found) state[1] = std::max<int64_t>(state[1], slot + 1);
}

void RowMemory::age_by_place() {
    std::vector<int32_t> slots(static_cast<size_t>(filled()));
    std::iota(slots.begin(), slots.end(), 0);
    std::sort(slots.begin(), slots.end(), [&](int32_t a, int32_t b) { return places[row_in[a]] > places[row_in[b]]; });
    begin_uses(filled());
    for (int32_t slot : slots) last_use[slot] = static_cast<uint32_t>(++state[2]);
}

void RowMemory::resize(int64_t slots) {
    const int64_t before = filled();
    state[0] = std::min(slots, capacity);
    state[1] = std::min(before, state[0]);
    for (int64_t slot = filled(); slot < before; ++slot) slot_of[row_in[slot]] = -1;
    for (int64_t slot = 0; slot < filled(); ++slot) stay[slot] = is_pinned(row_in[slot]) ? kStays : std::min(stay[slot], kAgain);
    if (filled() == before) return;
    const int64_t page = sysconf(_SC_PAGESIZE), first = divide_up(state[0] * row_bytes, page) * page;
    const int64_t end = capacity * row_bytes / page * page;
    // Memory that is locked stays.
    if (first < end) static_cast<void>(madvise(stored + first, static_cast<size_t>(end - first), MADV_DONTNEED));
}

std::vector<int32_t> RowMemory::slots_for(int64_t count) const {
    std::vector<int32_t> found;
    for (int64_t slot = filled(); slot < slots() && count > 0; ++slot, --count) found.push_back(static_cast<int32_t>(slot));
    if (count == 0) return found;
    int64_t once = 0, again = 0;
    for (int64_t slot = 0; slot < filled(); ++slot) {
        once += stay[slot] == kOnce;
        again += stay[slot] == kAgain;
    }
    const auto coming = count + static_cast<int64_t>(found.size());
    const int64_t over = std::max<int64_t>(0, once + coming - (once + again) / kTrial);
    const int64_t from_once = std::min({count, once, std::max(over, count - again)});
    add_oldest(kOnce, from_once, found);
    add_oldest(kAgain, std::min(again, count - from_once), found);
    return found;
}

// The slots of this kind that were used longest ago, the oldest first; there are as many.
void RowMemory::add_oldest(uint8_t kind, int64_t count, std::vector<int32_t>& found) const {
    if (count <= 0) return;
    std::priority_queue<std::pair<uint32_t, int32_t>> oldest;  // the youngest of them on top
    for (int64_t slot = 0; slot < filled(); ++slot) {
        if (stay[slot] != kind) continue;
        const std::pair<uint32_t, int32_t> one{last_use[slot], static_cast<int32_t>(slot)};
        if (static_cast<int64_t>(oldest.size()) == count) {
            if (one >= oldest.top()) continue;
            oldest.pop();
        }
        oldest.push(one);
    }
    for (; !oldest.empty(); oldest.pop()) found.push_back(oldest.top().second);
    std::reverse(found.end() - count, found.end());
}

}  // namespace weightpager

// Which of a table's rows are in memory, where, and which go for others.
//
// Half of the slots are for the rows of the first places, which were used the most when the bundle was compiled: they never
// go. The others are a segmented LRU. Rows that were looked up once since they came go first, as far as they are more than a
// fifth; then those that were used longest ago.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace weightpager {

// Each row's place in the order of use, as the bundle has it: 16 or 32 bits.
struct Places {
    const void* values;
    bool wide;

    int64_t operator[](int64_t row) const {
        return wide ? static_cast<int64_t>(static_cast<const uint32_t*>(values)[row])
                    : static_cast<int64_t>(static_cast<const uint16_t*>(values)[row]);
    }
};

// One thread at a time. The arrays are the caller's.
struct RowMemory {
    Places places;
    int64_t rows, row_bytes, capacity;
    uint8_t* stored;     // [capacity, row_bytes]
    int32_t* slot_of;    // [rows], -1 if it isn't in memory
    int32_t* row_in;     // [capacity]
    uint32_t* last_use;  // [capacity]
    uint8_t* stay;       // [capacity]
    int64_t* state;      // slots, how many of them are filled, and the latest tick

    int64_t slots() const { return state[0]; }
    int64_t filled() const { return state[1]; }

    // The bytes of a row that counts as used now; null if it isn't in memory. `begin_uses` comes first.
    const uint8_t* use(int64_t row);

    // So many uses come.
    void begin_uses(int64_t count);

    // Takes rows in. Each row occurs once, and the most wanted comes first. A row that is in memory already is left out.
    // If there is no room, other rows go. If too few may go, the last ones are left out. Row i is at `base + offsets[i]`.
    // Rows `on_trial` were looked up for the first time just now.
    void insert(const std::vector<int64_t>& wanted, const uint8_t* base, const std::vector<int64_t>& offsets, bool on_trial);

    // Forgets when rows were used: those of the last places go first.
    void age_by_place();

    // Keeps so many rows at most. Rows of slots that are given up go, and their memory with them.
    void resize(int64_t slots);

   private:
    bool is_pinned(int64_t row) const;
    std::vector<int32_t> slots_for(int64_t count) const;
    void add_oldest(uint8_t kind, int64_t count, std::vector<int32_t>& found) const;
};

}  // namespace weightpager

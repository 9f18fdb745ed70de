#include "block_tables.hpp"

#include <memory>

namespace weightpager {
namespace {

constexpr int64_t kWord = 64;

// Where the blocks lie that a task uses, by their numbers.
class Whereabouts {
   public:
    explicit Whereabouts(int64_t total) : used_(total / kWord + 1), location_(new int32_t[total]) {}

    void add(int64_t number, int32_t location) {
        used_[number / kWord] |= uint64_t{1} << number % kWord;
        location_[number] = location;
    }

    // Calls `visit` with every number from `begin` to `end` that is there, ascending, and its location.
    template <class Visit>
    void each(int64_t begin, int64_t end, const Visit& visit) const {
        for (int64_t word = begin / kWord; word * kWord < end; ++word) {
            uint64_t bits = used_[word];
            if (word == begin / kWord) bits &= ~uint64_t{0} << begin % kWord;
            if (end - word * kWord < kWord) bits &= (uint64_t{1} << (end - word * kWord)) - 1;
            for (; bits; bits &= bits - 1) {
                const int64_t number = word * kWord + __builtin_ctzll(bits);
                visit(number, location_[number]);
            }
        }
    }

   private:
    std::vector<uint64_t> used_;
    std::unique_ptr<int32_t[]> location_;  // not set where nothing is used, so that its memory isn't even touched there
};

// Calls `visit` with the number in the bundle of every block that the task uses, its page and its place, as they lie.
template <class Number, class Visit>
void each_used(const Placement& placement, const uint8_t* used, const Visit& visit) {
    const Number* blocks = static_cast<const Number*>(placement.blocks);
    const int64_t bytes = (placement.pages * placement.places + 7) / 8;
    int64_t page = 0, first = 0;  // place 0 of the page is location `first`
    for (int64_t byte = 0; byte < bytes; byte += 8) {
        uint64_t bits = 0;
        for (int64_t part = 0; part < 8 && byte + part < bytes; ++part) bits |= uint64_t{used[byte + part]} << part * 8;
        for (; bits; bits &= bits - 1) {
            const int64_t location = byte * 8 + __builtin_ctzll(bits);
            for (; location >= first + placement.places; first += placement.places) ++page;
            visit(placement.starts[placement.layers[page]] + blocks[location], page, location - first);
        }
    }
}

template <class Number>
void expand(const Placement& placement, const std::vector<Grid>& grids, const uint8_t* used, int32_t* crow,
            int32_t* columns, int32_t* locations) {
    Whereabouts blocks(placement.total);
    each_used<Number>(placement, used, [&](int64_t number, int64_t page, int64_t place) {
        blocks.add(number, static_cast<int32_t>(placement.page_numbers[page] * placement.places + place));
    });
    for (const Grid& grid : grids) {
        int32_t kept = 0;
        for (int64_t row = 0; row < grid.rows; ++row) {
            const int64_t begin = grid.first + row * grid.cols;
            *crow++ = kept;
            blocks.each(begin, begin + grid.cols, [&](int64_t number, int32_t location) {
                columns[kept] = static_cast<int32_t>(number - begin);
                locations[kept++] = location;
            });
        }
        *crow++ = kept;
        columns += kept;
        locations += kept;
    }
}

}  // namespace

void expand_tables(const Placement& placement, const std::vector<Grid>& grids, const uint8_t* used, int32_t* crow,
                   int32_t* columns, int32_t* locations) {
    const auto expand_any = placement.wide ? expand<uint32_t> : expand<uint16_t>;
    expand_any(placement, grids, used, crow, columns, locations);
}

}  // namespace weightpager

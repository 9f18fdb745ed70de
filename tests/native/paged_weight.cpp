#include "paged_weight.hpp"

#include <algorithm>
#include <utility>

#include "divide.hpp"
#include "values.hpp"

using namespace weightpager;

namespace {

constexpr int64_t kScaleBytes = 2;  // bfloat16
constexpr uint8_t kSpoilt = 0xff;   // NaN, in float32 and bfloat16

bool keeps_row(Mask mask, Random& random) {
    return mask == Mask::nothing ? false : mask == Mask::empty_rows ? random.one_in(2) : true;
}

bool keeps_block(Mask mask, Random& random) { return mask == Mask::everything || random.one_in(2); }

}  // namespace

PagedWeight::PagedWeight(const TestCase& test, Random& random)
    : test_(test),
      block_bytes_(test.block_rows * test.block_cols * element_bits(test.weight_dtype) / 8),
      dense_(static_cast<size_t>(test.out_features * test.in_features)) {
    keep_blocks(random);
    place_pages(random);
    for (size_t row = 0; row + 1 < crow_indices_.size(); ++row)
        for (int32_t kept = crow_indices_[row]; kept < crow_indices_[row + 1]; ++kept)
            fill_block(static_cast<int64_t>(row), kept, random);
}

PagedMatrix PagedWeight::matrix() const {
    return {arena_.data(), page_table_.data(), crow_indices_.data(), col_indices_.data(), locations_.data(),
            slots_, page_bytes_, test_.blocks_per_page, test_.out_features, test_.in_features,
            test_.block_rows, test_.block_cols, test_.weight_dtype};
}

int32_t PagedWeight::replace_slot(int64_t page, int32_t slot) {
    return std::exchange(page_table_[static_cast<size_t>(page)], slot);
}

void PagedWeight::keep_blocks(Random& random) {
    std::vector<int32_t> columns;
    crow_indices_.assign(static_cast<size_t>(divide_up(test_.out_features, test_.block_rows)) + 1, 0);
    for (size_t row = 1; row < crow_indices_.size(); ++row) {
        const bool any = keeps_row(test_.mask, random);
        for (int32_t col = 0; any && col < divide_up(test_.in_features, test_.block_cols); ++col)
            if (keeps_block(test_.mask, random)) columns.push_back(col);
        crow_indices_[row] = static_cast<int32_t>(columns.size());
    }
    // The tables are copied once their size is known: a vector that has grown owns more than it holds.
    col_indices_ = std::vector<int32_t>(columns.begin(), columns.end());
}

// More places than blocks and more slots than pages. What holds no block would spoil any result, and pages that hold
// none aren't resident.
void PagedWeight::place_pages(Random& random) {
    const int64_t kept = static_cast<int64_t>(col_indices_.size()), pages = kept / test_.blocks_per_page + 2;
    const std::vector<int32_t> places = random.permutation(pages * test_.blocks_per_page);
    locations_ = std::vector<int32_t>(places.begin(), places.begin() + kept);

    slots_ = kept == 0 ? 0 : pages + random.below(3);
    const std::vector<int32_t> slots = random.permutation(slots_);
    page_table_.assign(static_cast<size_t>(pages), -1);
    for (int64_t k = 0; k < kept; ++k) {
        const size_t page = static_cast<size_t>(page_of(k));
        page_table_[page] = slots[page];
    }
    const int64_t scale_bytes = scaled(test_.weight_dtype) ? test_.block_rows * kScaleBytes : 0;
    page_bytes_ = test_.blocks_per_page * (block_bytes_ + scale_bytes) + test_.unused_bytes;
    arena_.assign(static_cast<size_t>(slots_ * page_bytes_), kSpoilt);
}

void PagedWeight::fill_block(int64_t grid_row, int64_t kept, Random& random) {
    const int64_t place = locations_[static_cast<size_t>(kept)] % test_.blocks_per_page;
    uint8_t* page = arena_.data() + page_table_[static_cast<size_t>(page_of(kept))] * page_bytes_;
    const int64_t first_input = col_indices_[static_cast<size_t>(kept)] * test_.block_cols;
    for (int64_t r = 0; r < test_.block_rows; ++r) {
        const double scale = scaled(test_.weight_dtype) ? double{fill_scale(page, place, r, random)} : 1.0;
        for (int64_t c = 0; c < test_.block_cols; ++c)
            fill_element(page + place * block_bytes_, scale, r, c, grid_row * test_.block_rows + r, first_input + c,
                         random);
    }
}

void PagedWeight::fill_element(uint8_t* block, double scale, int64_t r, int64_t c, int64_t output, int64_t input,
                               Random& random) {
    const int64_t p = test_.weight_dtype == Dtype::float32 ? 1 : 2;
    uint8_t* to = block + ((c / p * test_.block_rows + r) * p + c % p) * element_bits(test_.weight_dtype) / 8;
    const bool padding = output >= test_.out_features || input >= test_.in_features;
    double value;
    if (test_.weight_dtype == Dtype::int4) {
        constexpr int64_t kFirstBits[] = {0, 16, 8, 24, 4, 20, 12, 28};  // of the eight numbers in a word
        const int64_t number = padding ? 0 : random.between(-8, 7), bit = kFirstBits[c % 8];
        uint8_t& both = block[(c / 8 * test_.block_rows + r) * 4 + bit / 8];
        both = static_cast<uint8_t>((both & ~(15 << bit % 8)) | (number + 8) << bit % 8);
        value = static_cast<double>(number) * scale;
    } else if (test_.weight_dtype == Dtype::int8) {
        const auto number = static_cast<int8_t>(padding ? 0 : random.between(-127, 127));
        std::memcpy(to, &number, 1);
        value = number * scale;
    } else {
        write_value(to, test_.weight_dtype, padding ? 0.0f : random.number());
        value = read_value(to, test_.weight_dtype);
    }
    if (!padding) dense_[static_cast<size_t>(output * test_.in_features + input)] = value;
}

// The scales of all places lie behind the last place.
float PagedWeight::fill_scale(uint8_t* page, int64_t place, int64_t row, Random& random) {
    uint8_t* to = page + test_.blocks_per_page * block_bytes_ + (place * test_.block_rows + row) * kScaleBytes;
    const bool int4 = test_.weight_dtype == Dtype::int4;
    const float scale = (random.number() + 1.5f) / (int4 ? 8 : 127);
    write_value(to, Dtype::bfloat16, int4 && random.one_in(2) ? -scale : scale);
    return static_cast<float>(read_value(to, Dtype::bfloat16));
}

// A random weight twice: dense, and cut into blocks in shuffled pages in shuffled slots (docs/bundle-format.md).
#pragma once

#include <cstdint>
#include <vector>

#include "linear/paged_linear.hpp"
#include "random.hpp"
#include "test_case.hpp"

class PagedWeight {
   public:
    PagedWeight(const TestCase& test, Random& random);

    // Points into this object.
    weightpager::PagedMatrix matrix() const;

    // [out_features, in_features]
    const std::vector<double>& dense() const { return dense_; }

    int64_t kept() const { return static_cast<int64_t>(locations_.size()); }
    int64_t page_of(int64_t kept) const { return locations_[static_cast<size_t>(kept)] / test_.blocks_per_page; }

    // Gives a page an entry of the page table, and returns the one that it had.
    int32_t replace_slot(int64_t page, int32_t slot);

    int64_t slots() const { return slots_; }

   private:
    void keep_blocks(Random& random);
    void place_pages(Random& random);
    void fill_block(int64_t grid_row, int64_t kept, Random& random);
    void fill_element(uint8_t* block, double scale, int64_t r, int64_t c, int64_t output, int64_t input,
                      Random& random);
    float fill_scale(uint8_t* page, int64_t place, int64_t row, Random& random);

    TestCase test_;
    int64_t block_bytes_, page_bytes_ = 0, slots_ = 0;
    std::vector<uint8_t> arena_;
    std::vector<int32_t> page_table_, crow_indices_, col_indices_, locations_;
    std::vector<double> dense_;
};

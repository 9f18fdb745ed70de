// Block tables of one task, expanded from which block lies in each place of each page and a bit for each place.
#pragma once

#include <cstdint>
#include <vector>

namespace weightpager {

// What a bundle says of its blocks; see weightpager/bundle/format/placement.py, which has checked it.
struct Placement {
    const void* blocks;          // [pages, places], a block's number in its layer
    bool wide;                   // whether these are uint32; else uint16
    const int32_t* layers;       // [pages]
    const int64_t* page_numbers; // [pages], what locations call them
    int64_t pages, places;
    const int64_t* starts;       // [layers + 1], the number in the bundle of each layer's first block
    int64_t total;               // blocks of all weights
};

// A paged weight's blocks: `rows * cols` numbers from `first` on.
struct Grid {
    int64_t first, rows, cols;
};

// Writes the tables of the task whose bits are `used`: of each weight rows + 1 entries of `crow`, then columns and
// locations of its blocks, one weight after the other. Takes up to 33 bits for each block of the bundle while it works.
void expand_tables(const Placement& placement, const std::vector<Grid>& grids, const uint8_t* used, int32_t* crow,
                   int32_t* columns, int32_t* locations);

}  // namespace weightpager

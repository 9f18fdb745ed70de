// What a test varies. A case is given by its number alone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "linear/paged_linear.hpp"
#include "random.hpp"

enum class Mask : int { nothing, everything, empty_rows, random };

struct TestCase {
    weightpager::Dtype weight_dtype, dtype;
    std::optional<weightpager::Dtype> bias;
    int64_t block_rows, block_cols, out_features, in_features, tokens;
    Mask mask;
    int64_t blocks_per_page, unused_bytes;  // at the end of a page
};

// After so many cases every pair of dtypes has met every block shape and every number of tokens.
constexpr int64_t kFullRound = 8 * 6 * 72;

// Case `number`; what the number doesn't decide is drawn from `random`.
TestCase test_case(int64_t number, Random& random);

std::string describe(const TestCase& test);

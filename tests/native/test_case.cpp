#include "test_case.hpp"

#include <sstream>

#include "divide.hpp"

using weightpager::Dtype;

namespace {

struct Shape {
    int64_t rows, cols;
};

constexpr Dtype kWeights[] = {Dtype::float32, Dtype::bfloat16, Dtype::int8, Dtype::int4};
constexpr Dtype kActivations[] = {Dtype::float32, Dtype::bfloat16};
constexpr Shape kBlocks[] = {{8, 8}, {16, 32}, {32, 32}, {32, 64}, {64, 64}, {64, 16}};

// Without a common divisor with the round, and far from a simple part of it: even a few cases are of all kinds.
constexpr int64_t kStride = 1597;

constexpr int64_t kManyTokens = 300, kMostTokens = 70;
static_assert(kFullRound == 8 * 6 * (kMostTokens + 2));

// 300 tokens of more inputs than this don't fit the scratch, so that several rounds are taken.
constexpr int64_t kManyInputs = 500, kMostFeatures = 200;

const char* name(Dtype dtype) {
    constexpr const char* names[] = {"float32", "bfloat16", "int8", "int4"};
    return names[static_cast<int>(dtype)];
}

const char* name(Mask mask) {
    constexpr const char* names[] = {"nothing", "everything", "empty rows", "random"};
    return names[static_cast<int>(mask)];
}

// Every other time a multiple of the block.
int64_t features(int64_t block, int64_t low, int64_t high, Random& random) {
    const int64_t drawn = random.between(low, high);
    return random.one_in(2) ? drawn : weightpager::divide_up(drawn, block) * block;
}

std::optional<Dtype> bias(Random& random) {
    const int64_t drawn = random.below(3);
    return drawn == 2 ? std::nullopt : std::optional<Dtype>(kActivations[drawn]);
}

}  // namespace

TestCase test_case(int64_t number, Random& random) {
    TestCase test;
    const int64_t at = number * kStride % kFullRound;
    const int64_t dtypes = at % 8, block = at / 8 % 6, tokens = at / 48;
    const bool many = tokens > kMostTokens;
    test.weight_dtype = kWeights[dtypes / 2];
    test.dtype = kActivations[dtypes % 2];
    test.bias = bias(random);
    test.block_rows = kBlocks[block].rows;
    test.block_cols = kBlocks[block].cols;
    test.tokens = many ? kManyTokens : tokens;
    test.out_features = features(test.block_rows, 1, kMostFeatures, random);
    test.in_features = many ? features(test.block_cols, kManyInputs, kManyInputs + 9, random)
                            : features(test.block_cols, 1, kMostFeatures, random);
    test.mask = random.any<Mask>({Mask::nothing, Mask::everything, Mask::empty_rows, Mask::empty_rows, Mask::random,
                                  Mask::random, Mask::random});
    test.blocks_per_page = random.between(1, 5);
    test.unused_bytes = random.one_in(2) ? 0 : random.between(1, 255);
    return test;
}

std::string describe(const TestCase& test) {
    std::ostringstream text;
    text << "weight " << name(test.weight_dtype) << " [" << test.out_features << ", " << test.in_features
         << "] in blocks of " << test.block_rows << "x" << test.block_cols << ", kept: " << name(test.mask) << "; "
         << test.tokens << " tokens in " << name(test.dtype) << ", bias " << (test.bias ? name(*test.bias) : "none")
         << "; " << test.blocks_per_page << " blocks in a page and " << test.unused_bytes << " unused bytes";
    return text.str();
}

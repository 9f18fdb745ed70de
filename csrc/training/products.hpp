// What the compiler learns with: products of a weight [out_features, in_features] of which a task keeps some blocks. Values
// are float32 and change at every step, so that blocks are packed anew for each, as bfloat16. Activations and their
// gradients are bfloat16 where the processor multiplies pairs of it, and float32 elsewhere.
#pragma once

#include <cstdint>
#include <vector>

namespace weightpager {

// Plain memory, owned by the caller and already validated.
struct KeptBlocks {
    const int32_t* crow_indices;  // [grid_rows + 1]
    const int32_t* col_indices;   // [kept], ascending within a row
    int64_t out_features, in_features;
    int64_t block_rows, block_cols;  // powers of two from 8 to 256
};

// Of each row of a block, as pages of few bits hold it: a whole number times the row's scale.
struct RowRounding {
    const float* divisors;  // [grid_rows, block_rows, grid_cols], by which a row's largest weight becomes its scale; or null
    float least, largest;   // number
};

struct Products {
    const char* name;

    // Blocks of `weight [out_features, in_features]` in bfloat16, [kept, block bytes] as the kernels read them; and each
    // turned, as a block of the weight's transpose, at the same place.
    void (*pack)(const KeptBlocks& of, const float* weight, const RowRounding& rounding, uint16_t* blocks, uint16_t* turned,
                 int threads);

    // Adds dy^T . x, for x [tokens, in_features] and dy [tokens, out_features], both bfloat16 or float32, to the kept blocks
    // of `sum [out_features, in_features]`. The number of threads doesn't change the result.
    void (*add_gradient)(const KeptBlocks& of, const uint16_t* x, const uint16_t* dy, int64_t tokens, float* sum,
                         int threads);
    void (*add_gradient_float32)(const KeptBlocks& of, const float* x, const float* dy, int64_t tokens, float* sum,
                                 int threads);
};

// Every instruction set's (products.cpp).
extern const Products products_generic;
#if defined(WEIGHTPAGER_X86)
extern const Products products_avx2, products_avx512;
#if defined(WEIGHTPAGER_AVX512_BF16)
extern const Products products_avx512_bf16;
#endif
#elif defined(__aarch64__)
extern const Products products_neon;
#if defined(WEIGHTPAGER_NEON_BF16)
extern const Products products_neon_bf16;
#endif
#endif

// What this machine can run, best first: for each instruction set of the kernels that has some; never empty.
const std::vector<const Products*>& products();

}  // namespace weightpager

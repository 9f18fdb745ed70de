// Operators over float32 that are worth vector instructions. Every instruction set brings a `Vectors` (vector.cpp, compiled
// once for each). All work on a range that one thread takes: what they compute for a row never depends on the range.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "unary.hpp"

namespace weightpager {

enum class Binary : int { add, subtract, multiply, divide };

// Over the last axis of contiguous rows: (x - mean) / sqrt(variance + epsilon) * weight + bias, or without centring and
// bias x / sqrt(mean(x * x) + epsilon) * (weight + offset). Where there is a `y`, of x + y, which is written to `sum`.
struct Norm {
    const float *x, *y;
    float *sum, *out;
    const float *weight, *bias;  // [columns] or null
    int64_t columns;
    float epsilon, offset;
    bool centred;
};

// y = activation(x . W^T + bias) for a weight whose rows follow each other.
struct Dense {
    const float* x;
    int64_t x_stride;
    const void* weight;  // [outputs, inputs]
    bool bfloat16;       // else float32
    const float* bias;   // [outputs] or null
    float* y;
    int64_t y_stride, inputs;
    Unary activation;
};

// A tensor of heads; its last axis has no gaps. Strides in elements.
struct Heads {
    int64_t batch, head, token;
};

constexpr int64_t kKeysAtOnce = 64, kDeepestHead = 256, kQueriesAtOnce = 48;

// softmax(scale * query . key^T) . value for grouped heads.
struct Attention {
    const float *query, *key, *value;
    float* out;
    Heads query_at, key_at, value_at, out_at;
    int64_t heads, groups, queries, keys, depth, value_depth;
    const void* mask;  // [batch, keys], 0 where a key may not be seen, or null
    bool wide_mask;    // int64, else bytes
    int64_t mask_row, mask_key;  // strides of it
    float scale, softcap;
    bool causal;
    int64_t window;
    const int64_t* segments;  // [batch, 2, keys]: where the run of keys begins and ends that a query may see, or null

    // Of a KV cache, in place of `key` and `value`: for each batch row and group blocks of keys [depth, kKeysAtOnce] and of
    // values [kKeysAtOnce, value_depth]. Block j of row b and group g is at (j * batch + b) * groups + g.
    const void* const* key_blocks;  // one pointer a block j
    const void* const* value_blocks;
    bool halves;  // what they hold: float16, else float32
    int64_t batch;

    int64_t rows() const { return heads / groups * queries; }  // of a group
};

struct Vectors {
    const char* name;
    void (*unary)(Unary kind, const float* x, float* y, int64_t count);
    // Each operand is `count` numbers or, where its step is 0, one.
    void (*binary)(Binary kind, const float* x, int x_step, const float* y, int y_step, float* out, int64_t count);
    void (*norm)(const Norm& norm, int64_t first_row, int64_t end_row);
    void (*softmax)(const float* x, float* y, int64_t columns, int64_t first_row, int64_t end_row);
    void (*dense)(const Dense& dense, int64_t first_row, int64_t end_row, int64_t first_output, int64_t end_output);
    // Rows of one group of one batch row: row r is query r % queries of head r / queries of the group.
    void (*attend)(const Attention& attention, int64_t batch, int64_t group, int64_t first_row, int64_t end_row);
};

// What this machine can run, best first; never empty.
const std::vector<const Vectors*>& vectors();

// What goes with a kernel of `kernels()`.
const Vectors& vectors_for(const std::string& kernel);

}  // namespace weightpager

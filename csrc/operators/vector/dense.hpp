// The product with a weight that isn't paged. Lanes run along the inputs, so that nothing need be packed: a weight of a head
// is used once a call, and by few rows.
#pragma once

#include "elements.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

constexpr int kDenseOutputs = 4, kDenseRows = kLanes == 8 ? 2 : 6;  // that accumulate at once: what registers hold

template <class Value, int Rows, int Outputs>
void dense_tile(const Dense& d, int64_t row, int64_t output) {
    const Value* weight = static_cast<const Value*>(d.weight) + output * d.inputs;
    const float* x = d.x + row * d.x_stride;
    Float sums[Rows][Outputs] = {};
    const auto add = [&](const auto& read_x, const auto& read_weight) WEIGHTPAGER_INLINED {
        Float weights[Outputs];
        unroll<Outputs>([&](auto o) WEIGHTPAGER_INLINED { weights[o] = read_weight(weight + o * d.inputs); });
        unroll<Rows>([&](auto r) WEIGHTPAGER_INLINED {
            const Float value = read_x(x + r * d.x_stride);
            unroll<Outputs>([&](auto o) WEIGHTPAGER_INLINED { sums[r][o] = fused<kLanes>(value, weights[o], sums[r][o]); });
        });
    };
    by_registers(
        d.inputs,
        [&](int64_t at) WEIGHTPAGER_INLINED {
            add([&](const float* from) WEIGHTPAGER_INLINED { return load_floats(from + at); },
                [&](const Value* from) WEIGHTPAGER_INLINED { return load_floats(from + at); });
        },
        [&](int64_t at, int64_t left) WEIGHTPAGER_INLINED {
            add([&](const float* from) WEIGHTPAGER_INLINED { return load_part(from + at, left); },
                [&](const Value* from) WEIGHTPAGER_INLINED { return load_part(from + at, left); });
        });
    unroll<Rows>([&](auto r) WEIGHTPAGER_INLINED {
        float* y = d.y + (row + r) * d.y_stride + output;
        unroll<Outputs>([&](auto o) WEIGHTPAGER_INLINED {
            y[o] = sum_of(sums[r][o]) + (d.bias == nullptr ? 0.0f : d.bias[output + o]);
        });
    });
}

template <class Value, int Rows>
void dense_rows(const Dense& d, int64_t row, int64_t first_output, int64_t end_output) {
    int64_t output = first_output;
    for (; output + kDenseOutputs <= end_output; output += kDenseOutputs)
        dense_tile<Value, Rows, kDenseOutputs>(d, row, output);
    for (; output < end_output; ++output) dense_tile<Value, Rows, 1>(d, row, output);
}

template <class Value>
void dense_of(const Dense& d, int64_t first_row, int64_t end_row, int64_t first_output, int64_t end_output) {
    int64_t row = first_row;
    for (; row + kDenseRows <= end_row; row += kDenseRows) dense_rows<Value, kDenseRows>(d, row, first_output, end_output);
    for (; row < end_row; ++row) dense_rows<Value, 1>(d, row, first_output, end_output);
    if (d.activation == Unary::none) return;
    for (row = first_row; row < end_row; ++row) {
        float* y = d.y + row * d.y_stride + first_output;
        unary(d.activation, y, y, end_output - first_output);
    }
}

void dense(const Dense& d, int64_t first_row, int64_t end_row, int64_t first_output, int64_t end_output) {
    if (d.bfloat16)
        dense_of<uint16_t>(d, first_row, end_row, first_output, end_output);
    else
        dense_of<float>(d, first_row, end_row, first_output, end_output);
}

}  // namespace
}  // namespace weightpager

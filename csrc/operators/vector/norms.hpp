// Over the last axis: norms, alone or with the sum before them, and softmax.
#pragma once

#include "simd.hpp"
#include "vectors.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

// The sum over a row of what `of` makes of it; lanes behind its end count as 0.
template <class Of>
WEIGHTPAGER_INLINE float row_sum(const float* row, int64_t columns, const Of& of) {
    Float sums[4] = {};
    int64_t at = 0;
    for (; at + 4 * kLanes <= columns; at += 4 * kLanes)
        unroll<4>([&](auto i) WEIGHTPAGER_INLINED {
            constexpr int I = decltype(i)::value;
            sums[I] += of(load_floats(row + at + I * kLanes));
        });
    for (; at + kLanes <= columns; at += kLanes) sums[0] += of(load_floats(row + at));
    float sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
    if (at < columns) {
        const Float part = of(load_part(row + at, columns - at));
        for (int64_t i = 0; i < columns - at; ++i) sum += part[i];
    }
    return sum;
}

void norm_row(const Norm& n, const float* x, float* out) {
    const float columns = static_cast<float>(n.columns);
    const float mean = n.centred ? row_sum(x, n.columns, [](Float v) WEIGHTPAGER_INLINED { return v; }) / columns : 0.0f;
    const float squares = row_sum(x, n.columns, [&](Float v) WEIGHTPAGER_INLINED { return (v - mean) * (v - mean); });
    const float scale = 1.0f / __builtin_sqrtf(squares / columns + n.epsilon);
    const auto normed = [&](Float v, Float weight, Float bias) WEIGHTPAGER_INLINED { return (v - mean) * scale * weight + bias; };
    by_registers(
        n.columns,
        [&](int64_t at) WEIGHTPAGER_INLINED {
            const Float weight = n.weight == nullptr ? Float{} + 1.0f : load_floats(n.weight + at) + n.offset;
            const Float bias = n.bias == nullptr ? Float{} : load_floats(n.bias + at);
            store_floats(out + at, normed(load_floats(x + at), weight, bias));
        },
        [&](int64_t at, int64_t left) WEIGHTPAGER_INLINED {
            const Float weight = n.weight == nullptr ? Float{} + 1.0f : load_part(n.weight + at, left) + n.offset;
            const Float bias = n.bias == nullptr ? Float{} : load_part(n.bias + at, left);
            store_part(out + at, normed(load_part(x + at, left), weight, bias), left);
        });
}

void norm(const Norm& n, int64_t first_row, int64_t end_row) {
    for (int64_t row = first_row; row < end_row; ++row) {
        const int64_t at = row * n.columns;
        const float* x = n.x + at;
        if (n.y != nullptr) {
            const float* y = n.y + at;
            float* sum = n.sum + at;
            by_registers(
                n.columns, [&](int64_t i) WEIGHTPAGER_INLINED { store_floats(sum + i, load_floats(x + i) + load_floats(y + i)); },
                [&](int64_t i, int64_t left) WEIGHTPAGER_INLINED {
                    for (int64_t j = i; j < i + left; ++j) sum[j] = x[j] + y[j];
                });
            x = sum;
        }
        norm_row(n, x, n.out + at);
    }
}

// What is so far below the greatest that it would only become a denormal number is 0, and -infinity too.
WEIGHTPAGER_INLINE Float share_of(Float below) { return below < -87.0f ? Float{} : exponential<kLanes>(below); }

void softmax(const float* x, float* y, int64_t columns, int64_t first_row, int64_t end_row) {
    for (int64_t row = first_row; row < end_row; ++row) {
        const float* from = x + row * columns;
        float* to = y + row * columns;
        float largest = -__builtin_inff();
        for (int64_t i = 0; i < columns; ++i) largest = from[i] > largest ? from[i] : largest;
        by_registers(
            columns, [&](int64_t at) WEIGHTPAGER_INLINED { store_floats(to + at, share_of(load_floats(from + at) - largest)); },
            [&](int64_t at, int64_t left) WEIGHTPAGER_INLINED {
                store_part(to + at, share_of(load_part(from + at, left) - largest), left);
            });
        const float sum = row_sum(to, columns, [](Float v) WEIGHTPAGER_INLINED { return v; });
        for (int64_t i = 0; i < columns; ++i) to[i] /= sum;
    }
}

}  // namespace
}  // namespace weightpager

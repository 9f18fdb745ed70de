// Weights as Python hands them over: addresses of memory that belongs to its arrays and has been checked there.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "address.hpp"
#include "paged_linear.hpp"

namespace weightpager {

inline Dtype dtype_named(const std::string& name) {
    for (const DtypeFacts& each : kDtypes)
        if (name == each.name) return static_cast<Dtype>(&each - kDtypes);
    throw std::invalid_argument("no dtype '" + name + "'");
}

inline Unary activation_named(const std::string& name) {
    if (name == "silu") return Unary::silu;
    if (name == "gelu_tanh") return Unary::gelu_tanh;
    throw std::invalid_argument("no activation '" + name + "'");
}

inline Dtype dtype_of(bool bfloat16) { return bfloat16 ? Dtype::bfloat16 : Dtype::float32; }

// A paged weight, and calls of it. The memory belongs to the caller's tensors.
class Weight {
   public:
    Weight(uintptr_t arena, uintptr_t page_table, uintptr_t crow_indices, uintptr_t col_indices, uintptr_t locations,
           int64_t slots, int64_t page_bytes, int64_t blocks_per_page, int64_t out_features, int64_t in_features,
           int64_t block_rows, int64_t block_cols, const std::string& dtype)
        : matrix_{at<const uint8_t>(arena), at<const int32_t>(page_table), at<const int32_t>(crow_indices),
                  at<const int32_t>(col_indices), at<const int32_t>(locations),
                  slots, page_bytes, blocks_per_page, out_features, in_features, block_rows, block_cols,
                  dtype_named(dtype)} {}

    // `isa` is an index into `isas()`. Returns the index of a page that isn't resident, or -1.
    int64_t linear(size_t isa, uintptr_t x, uintptr_t y, bool bfloat16, int64_t tokens, uintptr_t bias,
                   bool bias_bfloat16, int threads) const {
        const Kernel& kernel = *kernels().at(isa);
        const Problem problem = with(x, y, bfloat16, tokens, bias, bias_bfloat16);
        nanobind::gil_scoped_release release;
        return paged_linear(kernel, problem, std::max(1, threads));
    }

    // The same, times the activation of the gate's outputs.
    int64_t gated(size_t isa, const Weight& gate, const std::string& activation, uintptr_t x, uintptr_t y,
                  bool bfloat16, int64_t tokens, uintptr_t gate_bias, bool gate_bias_bfloat16, uintptr_t bias,
                  bool bias_bfloat16, int threads) const {
        const Kernel& kernel = *kernels().at(isa);
        const Unary chosen = activation_named(activation);
        const Problem first = gate.with(x, 0, bfloat16, tokens, gate_bias, gate_bias_bfloat16);
        const Problem second = with(x, y, bfloat16, tokens, bias, bias_bfloat16);
        nanobind::gil_scoped_release release;
        return paged_gated(kernel, first, second, chosen, std::max(1, threads));
    }

    const PagedMatrix& matrix() const { return matrix_; }

   private:
    Problem with(uintptr_t x, uintptr_t y, bool bfloat16, int64_t tokens, uintptr_t bias, bool bias_bfloat16) const {
        return {matrix_, at<const void>(x), at<void>(y), dtype_of(bfloat16), tokens, at<const void>(bias),
                dtype_of(bias_bfloat16)};
    }

    PagedMatrix matrix_;
};

}  // namespace weightpager

// The Python module. Memory crosses the border as addresses, so that torch's headers are needed neither to build
// nor to run; weightpager/kernels/cpu.py has checked what they point to.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "paged_linear.hpp"
#include "parallel.hpp"

namespace nb = nanobind;
using namespace weightpager;

namespace {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

Dtype dtype_of(bool bfloat16) { return bfloat16 ? Dtype::bfloat16 : Dtype::float32; }

const Kernel& kernel_named(const std::string& isa) {
    for (const Kernel* kernel : kernels())
        if (isa == kernel->name) return *kernel;
    throw std::invalid_argument("this machine has no kernel '" + isa + "'");
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Kernel* kernel : kernels()) names.emplace_back(kernel->name);
    return names;
}

int64_t linear(const std::string& isa, uintptr_t arena, uintptr_t page_table, uintptr_t crow_indices,
               uintptr_t col_indices, uintptr_t locations, int64_t slots, int64_t page_bytes, int64_t blocks_per_page,
               int64_t out_features, int64_t in_features, int64_t block_rows, int64_t block_cols, bool weight_bfloat16,
               uintptr_t x, uintptr_t y, bool bfloat16, int64_t tokens, uintptr_t bias, bool bias_bfloat16,
               int threads) {
    const Kernel& kernel = kernel_named(isa);
    const Problem problem{
        at<const uint8_t>(arena), at<const int32_t>(page_table), at<const int32_t>(crow_indices),
        at<const int32_t>(col_indices), at<const int32_t>(locations),
        slots, page_bytes, blocks_per_page, out_features, in_features, block_rows, block_cols,
        dtype_of(weight_bfloat16), at<const void>(x), at<void>(y), dtype_of(bfloat16), tokens,
        at<const void>(bias), dtype_of(bias_bfloat16)};
    nb::gil_scoped_release release;
    return paged_linear(kernel, problem, std::max(1, threads));
}

}  // namespace

NB_MODULE(_native, m) {
    m.def("isas", &isas);
    m.def("threading", [] { return std::string(have_openmp() ? "gomp" : "serial"); });
    m.def("linear", &linear, nb::kw_only(), nb::arg("isa"), nb::arg("arena"), nb::arg("page_table"),
          nb::arg("crow_indices"), nb::arg("col_indices"), nb::arg("locations"), nb::arg("slots"),
          nb::arg("page_bytes"), nb::arg("blocks_per_page"), nb::arg("out_features"), nb::arg("in_features"),
          nb::arg("block_rows"), nb::arg("block_cols"), nb::arg("weight_bfloat16"), nb::arg("x"), nb::arg("y"),
          nb::arg("bfloat16"), nb::arg("tokens"), nb::arg("bias"), nb::arg("bias_bfloat16"), nb::arg("threads"));
}

// Memory crosses the border as addresses; weightpager/kernels/torch/kept_blocks.py has checked what they point to.
#include "bindings.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "../address.hpp"
#include "products.hpp"

namespace nb = nanobind;

namespace weightpager {
namespace {

// One task's blocks of one weight; the tables belong to the caller's arrays.
class Blocks {
   public:
    Blocks(uintptr_t crow, uintptr_t columns, int64_t out_features, int64_t in_features, int64_t rows, int64_t cols)
        : of_{at<const int32_t>(crow), at<const int32_t>(columns), out_features, in_features, rows, cols} {}

    void pack(size_t number, uintptr_t weight, uintptr_t divisors, float least, float largest, uintptr_t blocks,
              uintptr_t turned, int threads) const {
        nb::gil_scoped_release release;
        products().at(number)->pack(of_, at<const float>(weight), {at<const float>(divisors), least, largest},
                                    at<uint16_t>(blocks), at<uint16_t>(turned), threads);
    }

    void add_gradient(size_t number, uintptr_t x, uintptr_t dy, bool bfloat16, int64_t tokens, uintptr_t sum,
                      int threads) const {
        nb::gil_scoped_release release;
        const Products& by = *products().at(number);
        float* const to = at<float>(sum);
        if (bfloat16)
            by.add_gradient(of_, at<const uint16_t>(x), at<const uint16_t>(dy), tokens, to, threads);
        else
            by.add_gradient_float32(of_, at<const float>(x), at<const float>(dy), tokens, to, threads);
    }

   private:
    KeptBlocks of_;
};

}  // namespace

void bind_training(nb::module_& m) {
    m.def("products", [] {
        std::vector<std::string> names;
        for (const Products* one : products()) names.emplace_back(one->name);
        return names;
    });
    nb::class_<Blocks>(m, "KeptBlocks")
        .def(nb::init<uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t>())
        .def("pack", &Blocks::pack)
        .def("add_gradient", &Blocks::add_gradient);
}

}  // namespace weightpager

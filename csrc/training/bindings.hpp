#pragma once

#include <nanobind/nanobind.h>

namespace weightpager {

// What Python sees of the products that training needs.
void bind_training(nanobind::module_& module);

}  // namespace weightpager

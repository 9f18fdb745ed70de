#pragma once

#include <nanobind/nanobind.h>

namespace weightpager {

// What Python sees of tables that are only looked up.
void bind_rows(nanobind::module_& module);

}  // namespace weightpager

#pragma once

#include <nanobind/nanobind.h>

namespace weightpager {

// What Python sees of programs.
void bind_programs(nanobind::module_& module);

}  // namespace weightpager

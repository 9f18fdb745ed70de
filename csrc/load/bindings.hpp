#pragma once

#include <nanobind/nanobind.h>

namespace weightpager {

// What Python sees of loads: queues of reads, and BLAKE3.
void bind_loads(nanobind::module_& module);
void bind_own_reads(nanobind::module_& module);

}  // namespace weightpager

#pragma once

#include "program/operator.hpp"

namespace weightpager {

// Of all rows and outputs, spread over threads.
void multiply_dense(const Dense& dense, int64_t rows, int64_t outputs, const Running& running);

}  // namespace weightpager

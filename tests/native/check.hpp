// Runs the kernels of the machine on one case and compares them with a plain loop in double precision.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "linear/paged_linear.hpp"

// What `kernels` do wrong in case `number`, one line for each mistake; none if all is well.
std::vector<std::string> mistakes(int64_t number, const std::vector<const weightpager::Kernel*>& kernels);

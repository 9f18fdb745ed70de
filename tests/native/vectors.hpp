#pragma once

#include <string>
#include <vector>

#include "operators/vector/vectors.hpp"

// What an instruction set's operators get wrong, compared with plain loops in double precision.
std::vector<std::string> vector_mistakes(const weightpager::Vectors& vectors, int64_t cases);

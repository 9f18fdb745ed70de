#pragma once

#include <cstdint>
#include <string>
#include <vector>

// Whole numbers that kernels of the compiler's baseline multiply and add up otherwise than a plain loop does.
std::vector<std::string> integer_mistakes(int64_t cases);

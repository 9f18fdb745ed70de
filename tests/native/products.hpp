#pragma once

#include <string>
#include <vector>

#include "training/products.hpp"

// What products got wrong in so many random cases, against plain loops.
std::vector<std::string> product_mistakes(const weightpager::Products& products, int64_t cases);

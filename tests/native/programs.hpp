#pragma once

#include <string>
#include <vector>

#include "linear/paged_linear.hpp"

// Random programs, most of them wrong somewhere: each is refused or runs, and gives the same bits on any number of threads.
// Whether they read or write where they mustn't, a sanitizer says.
std::vector<std::string> program_mistakes(const weightpager::Kernel& kernel, int64_t cases);

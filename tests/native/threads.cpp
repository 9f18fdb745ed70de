// In place of csrc/parallel.cpp, whose threads are torch's: there is no torch here.
#include <thread>
#include <vector>

#include "parallel.hpp"

namespace weightpager {

bool have_openmp() { return true; }

void run_region(int threads, Region region, void* data) {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; ++i) others.emplace_back(region, data);
    region(data);
    for (std::thread& other : others) other.join();
}

}  // namespace weightpager

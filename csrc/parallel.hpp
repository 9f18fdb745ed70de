// Loops on the OpenMP threads that torch has, where it has been loaded, else on threads of our own. A second runtime beside
// torch's would bring a second set of threads that fights the first for the cores, and may abort the process.
#pragma once

#include <atomic>
#include <cstdint>

#include "threads/pool.hpp"

namespace weightpager {

// Whether torch had loaded a runtime whose threads can be used when this was first asked, or a region first run.
bool have_openmp();

// Calls `region(data)` on up to `threads` threads at once, at least once, and returns when all have.
void run_region(int threads, Region region, void* data);

// Calls `body(i)` for every i in [0, count), once, in any order. `body` must not throw, and what it does with an i must not
// depend on the thread that does it.
template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
    struct Work {
        const Body& body;
        int64_t count;
        std::atomic<int64_t> next{0};
    } work{body, count};
    const int useful = static_cast<int>(count < threads ? count : threads);
    run_region(useful, [](void* data) {
        Work& shared = *static_cast<Work*>(data);
        for (int64_t i; (i = shared.next.fetch_add(1, std::memory_order_relaxed)) < shared.count;) shared.body(i);
    }, &work);
}

}  // namespace weightpager

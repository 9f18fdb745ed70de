// Threads of our own, for processes in which no OpenMP runtime of torch's is loaded.
#pragma once

#include <cstddef>

namespace weightpager {

// Of each of these threads at least, whatever the system gives by itself: musl's 128 KiB are less than a region takes.
constexpr size_t kStackBytes = size_t{1} << 20;

using Region = void (*)(void* data);

// Calls `region(data)` at least once and at most `threads` times, on as many threads at once, and returns when all calls
// have. The calling thread is one of them. The others are kept: after a call they spin for a moment, as the next call
// usually follows soon, and then sleep. The call does not wait for a thread that comes late. So a region hands out its
// work in pieces. The result of a piece must not depend on the thread.
//
// Any thread may call, also from inside a region, and also after a fork: the child starts threads of its own. While one
// call has the threads, others are carried out by their callers alone.
void run_on_pool(int threads, Region region, void* data);

// Cores that this process may use.
int usable_cores();

}  // namespace weightpager

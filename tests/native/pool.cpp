// Tests of our own threads. Exit code 1 if one fails.
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "parallel.hpp"

using namespace weightpager;

namespace {

int failures = 0;

void expect(bool right, const char* what) {
    if (right) return;
    std::cout << "FAILED: " << what << std::endl;
    ++failures;
}

// Every number once, each written without a lock: a sanitizer sees what isn't ordered.
bool adds_up(int64_t count, int threads) {
    std::vector<int64_t> seen(static_cast<size_t>(count), 0);
    parallel_for(count, threads, [&](int64_t i) { seen[static_cast<size_t>(i)] += i + 1; });
    for (int64_t i = 0; i < count; ++i)
        if (seen[static_cast<size_t>(i)] != i + 1) return false;
    return true;
}

void every_piece_is_done_once() {
    for (int64_t count : {0, 1, 2, 3, 7, 64, 1000})
        for (int threads : {0, 1, 2, 3, 8}) expect(adds_up(count, threads), "every piece is done once");
}

void calls_follow_each_other() {
    for (int i = 0; i < 3000; ++i) expect(adds_up(i % 7, 1 + i % 4), "calls that follow each other");
}

void sleepers_wake_up() {
    for (int i = 0; i < 5; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        expect(adds_up(100, 3), "calls after a pause");
    }
}

// Two that wait for each other end only if they run at once.
void pieces_run_at_once() {
    std::atomic<int> here{0};
    parallel_for(2, 2, [&](int64_t) {
        here.fetch_add(1);
        while (here.load() < 2) std::this_thread::yield();
    });
    expect(here.load() == 2, "pieces run at once");
}

// As musl does; glibc otherwise gives what the shell's limit says.
void let_stacks_be_small() {
#if defined(__GLIBC__)
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 128 << 10);
    expect(pthread_setattr_default_np(&attributes) == 0, "stacks are small");
    pthread_attr_destroy(&attributes);
#endif
}

// Ends the process where the stack is smaller.
void stacks_are_large_enough() {
    std::atomic<int> here{0};
    parallel_for(2, 2, [&](int64_t) {
        volatile char half[kStackBytes / 2];
        for (size_t i = 0; i < sizeof half; i += 1024) half[i] = 1;
        here.fetch_add(half[0]);
        while (here.load() < 2) std::this_thread::yield();
    });
    expect(here.load() == 2, "stacks are large enough");
}

void no_more_threads_than_asked_for() {
    std::mutex lock;
    std::set<std::thread::id> found;
    parallel_for(8, 8, [&](int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(1)); });
    parallel_for(200, 2, [&](int64_t) {
        const std::lock_guard<std::mutex> guard(lock);
        found.insert(std::this_thread::get_id());
    });
    expect(found.size() <= 2, "no more threads than asked for");
}

void regions_nest() {
    std::atomic<int64_t> sum{0};
    parallel_for(4, 3, [&](int64_t) { parallel_for(5, 3, [&](int64_t j) { sum.fetch_add(j); }); });
    expect(sum.load() == 40, "a region inside a region");
}

void several_callers() {
    std::atomic<bool> right{true};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c)
        callers.emplace_back([&] {
            for (int i = 0; i < 300; ++i)
                if (!adds_up(i % 9, 3)) right = false;
        });
    for (std::thread& caller : callers) caller.join();
    expect(right, "several callers");
}

// Whether a child process finds something true.
template <class Body>
bool holds_in_a_child(const Body& body) {
    const pid_t child = fork();
    if (child == 0) _exit(body() ? 0 : 1);
    int status = 1;
    return waitpid(child, &status, 0) == child && status == 0;
}

[[maybe_unused]] void a_child_has_threads_of_its_own() {
    expect(adds_up(100, 3), "before a fork");
    const bool right = holds_in_a_child([] {
        bool all = true;
        for (int i = 0; i < 100; ++i) all = all && adds_up(50, 3);
        return all;
    });
    expect(right, "a child has threads of its own");
    expect(adds_up(100, 3), "after a fork");
}

// Whether two pieces meet, each of which waits so long for the other.
bool two_meet(int milliseconds) {
    std::atomic<int> here{0}, met{0};
    parallel_for(2, 2, [&](int64_t) {
        here.fetch_add(1);
        for (int i = 0; i < milliseconds && here.load() < 2; ++i)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        met.fetch_add(here.load() == 2 ? 1 : 0);
    });
    return met.load() == 2;
}

void let_processes_be(rlim_t most) {
    rlimit limit;
    getrlimit(RLIMIT_NPROC, &limit);
    limit.rlim_cur = most < limit.rlim_max ? most : limit.rlim_max;
    setrlimit(RLIMIT_NPROC, &limit);
}

// In place of one that was refused, only after a second.
[[maybe_unused]] void threads_are_asked_for_again() {
    expect(holds_in_a_child([] {
        if (getuid() == 0 && setuid(65534) != 0) return true;  // a superuser has no limit
        let_processes_be(0);
        if (two_meet(50)) return false;
        let_processes_be(RLIM_INFINITY);
        if (two_meet(50)) return false;
        std::this_thread::sleep_for(std::chrono::milliseconds(1100));
        return two_meet(5000);
    }), "threads are asked for again a second after they were refused");
}

}  // namespace

int main() {
    let_stacks_be_small();
    stacks_are_large_enough();
    every_piece_is_done_once();
    calls_follow_each_other();
    sleepers_wake_up();
    pieces_run_at_once();
    no_more_threads_than_asked_for();
    regions_nest();
    several_callers();
#if !defined(__SANITIZE_THREAD__)  // which forbids a child of many threads to start its own
    a_child_has_threads_of_its_own();
    threads_are_asked_for_again();
#endif
    expect(usable_cores() >= 1, "there is a core");
    std::cout << (failures == 0 ? "threads: all passed" : "threads: some failed") << std::endl;
    return failures == 0 ? 0 : 1;
}

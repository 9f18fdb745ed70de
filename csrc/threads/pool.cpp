#include "pool.hpp"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <initializer_list>
#include <mutex>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace weightpager {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::microseconds kSpin{50};  // longer than what a model does between two regions
constexpr int kSpinsPerLook = 32;               // at the clock
constexpr std::chrono::seconds kRefused{1};     // for how long no thread is asked for after one was refused
constexpr int kMostThreads = 256;

void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Looks again and again until `done()` or the time is over; whether it is done.
template <class Done>
bool spin(std::chrono::microseconds most, const Done& done) {
    const auto end = Clock::now() + most;
    do {
        for (int i = 0; i < kSpinsPerLook; ++i) {
            if (done()) return true;
            pause_briefly();
        }
    } while (Clock::now() < end);
    return false;
}

class Pool {
   public:
    void run(int threads, Region region, void* data) {
        if (busy_.test_and_set(std::memory_order_acquire)) return region(data);
        start(threads - 1);
        region_ = region;
        data_ = data;
        const uint32_t others = static_cast<uint32_t>(threads - 1 < workers_ ? threads - 1 : workers_);
        state_.store(others * kSeat);
        wake(others);
        region(data);
        // Nobody enters any more, and who is inside is at work on the last pieces.
        state_.fetch_and(kInside);
        while (!spin(kSpin, [&] { return (state_.load(std::memory_order_acquire) & kInside) == 0; }))
            std::this_thread::yield();
        busy_.clear(std::memory_order_release);
    }

   private:
    // How many may still enter, and how many are inside.
    static constexpr uint32_t kSeat = 1u << 16, kInside = kSeat - 1;

    void start(int wanted) {
        if (workers_ >= wanted || (refused_ && Clock::now() < again_)) return;
        // Signals belong to the threads of the program.
        sigset_t all, before;
        sigfillset(&all);
        // What a thread's own instructions raise ends the process at once where it is blocked, whoever handles it.
        for (const int own : {SIGILL, SIGFPE, SIGSEGV, SIGBUS, SIGTRAP}) sigdelset(&all, own);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        // Where the system gives no more, those that there are, or the caller alone, do all the work.
        while (workers_ < wanted && start_worker()) ++workers_;
        refused_ = workers_ < wanted;
        if (refused_) again_ = Clock::now() + kRefused;
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        spins_.store(workers_ < usable_cores(), std::memory_order_relaxed);
    }

    bool start_worker() {
        pthread_attr_t attributes;
        size_t given = 0;
        if (pthread_attr_init(&attributes) != 0) return false;
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_getstacksize(&attributes, &given);
        if (given < kStackBytes) pthread_attr_setstacksize(&attributes, kStackBytes);
        pthread_t worker;
        const auto work = [](void* pool) -> void* { static_cast<Pool*>(pool)->work(); };
        const bool started = pthread_create(&worker, &attributes, work, this) == 0;
        pthread_attr_destroy(&attributes);
        return started;
    }

    [[noreturn]] void work() {
        for (;;) {
            if (enter()) {
                region_(data_);
                state_.fetch_sub(1, std::memory_order_release);
            } else {
                wait();
            }
        }
    }

    bool enter() {
        uint32_t state = state_.load(std::memory_order_relaxed);
        while (state >= kSeat)
            if (state_.compare_exchange_weak(state, state - kSeat + 1, std::memory_order_acquire)) return true;
        return false;
    }

    void wait() {
        const auto open = [&] { return state_.load() >= kSeat; };
        if (spins_.load(std::memory_order_relaxed) && spin(kSpin, open)) return;
        std::unique_lock<std::mutex> lock(lock_);
        sleeping_.fetch_add(1);
        woken_.wait(lock, open);
        sleeping_.fetch_sub(1);
    }

    // Whoever goes to sleep counts itself and then looks; whoever opens seats does so and then looks who sleeps. One of
    // both sees the other.
    void wake(uint32_t others) {
        const uint32_t sleeping = sleeping_.load();
        if (sleeping == 0) return;
        const std::lock_guard<std::mutex> lock(lock_);
        if (others >= sleeping)
            woken_.notify_all();
        else
            for (uint32_t i = 0; i < others; ++i) woken_.notify_one();
    }

    std::atomic_flag busy_ = ATOMIC_FLAG_INIT;  // who has it may touch the next five
    int workers_ = 0;
    bool refused_ = false;
    Clock::time_point again_;
    Region region_ = nullptr;
    void* data_ = nullptr;
    std::atomic<uint32_t> state_{0}, sleeping_{0};
    std::atomic<bool> spins_{true};
    std::mutex lock_;
    std::condition_variable woken_;
};

// Never destroyed: its threads outlive everything that could do so.
std::atomic<Pool*> current{nullptr};

Pool& pool() {
    Pool* found = current.load(std::memory_order_acquire);
    if (found != nullptr) return *found;
    // A child has none of the threads, and perhaps locks that nobody will open.
    static const int registered = pthread_atfork(nullptr, nullptr, [] { current.store(nullptr); });
    static_cast<void>(registered);
    auto* made = new Pool;
    if (current.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return *made;
    delete made;
    return *found;
}

}  // namespace

void run_on_pool(int threads, Region region, void* data) {
    if (threads <= 1)
        region(data);
    else
        pool().run(threads < kMostThreads ? threads : kMostThreads, region, data);
}

int usable_cores() {
#if defined(__linux__)
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) return CPU_COUNT(&mask);
#endif
    const unsigned cores = std::thread::hardware_concurrency();
    return cores == 0 ? 1 : static_cast<int>(cores);
}

}  // namespace weightpager

// Loads of pages: which reads begin when, which pages are what they should be, and what is told of that in groups.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "device.hpp"
#include "read.hpp"

namespace weightpager {

struct QueueLimits {
    size_t reads = 32;                 // in flight
    size_t bytes = 4 << 20;            // in flight when another read begins: what is urgent waits for no more
    int64_t group_microseconds = 500;  // that pages wait for others to be told of together
    size_t helpers = 3;                // threads that hash where one can't keep up
    size_t backlog = 1 << 18;          // bytes that wait to be hashed before a helper is asked
};

// Pages of one load that came together; or those of a read that failed, or wasn't made.
struct Told {
    uint64_t load;
    std::vector<int64_t> pages;
    Failure failure = Failure::none;
    int error = 0;
    int64_t corrupt_page = -1;
};

struct Report {
    std::vector<Told> told;
    std::vector<uint64_t> over;  // loads of which nothing is to come any more
};

// Any thread adds and takes back; one thread drives. Threads that help keep the queue alive until it is closed.
class ReadQueue : public std::enable_shared_from_this<ReadQueue> {
   public:
    using Open = std::function<std::unique_ptr<Device>()>;

    // `open` is called by the thread that drives.
    ReadQueue(Open open, const Hasher& hasher, const QueueLimits& limits);
    ~ReadQueue();

    // Queues the reads of a load. False if the queue has been closed. What isn't cancellable can only be withdrawn.
    bool add(uint64_t load, int priority, bool cancellable, std::vector<Read> reads);

    // Works until there is something to tell: at once when a load is over or a read has failed, else in groups. Calling it
    // again says that the caller has dealt with the last report: its pages are no longer outstanding. False if nothing will
    // come any more.
    bool drive(Report& report);

    // Takes back cancellable reads that haven't begun, but those with a page that is to be kept; their pages.
    std::vector<int64_t> cancel(const uint8_t* keep, size_t count);

    // Takes back what hasn't begun of one load.
    void withdraw(uint64_t load);

    // Pages of cancellable loads that haven't been told, or whose telling hasn't ended.
    std::vector<int64_t> outstanding() const;

    // Nothing begins any more. Returns the reads that had not begun. The caller tells their owners. `drive` never reports
    // such a load as over. Reads in flight are told of when they end, until `abandon`.
    std::vector<Told> close();
    void abandon();

    size_t in_flight() const;
    const char* device() const;  // empty before the first `drive`

   private:
    using Owned = std::unique_ptr<Read>;
    using Clock = std::chrono::steady_clock;
    using Held = std::unique_lock<std::mutex>;

    void begin_some();
    void land(const std::vector<Read*>& ended);
    Owned take_flying(Read* read);
    void check_one(Held& held);
    void finish(Owned read);
    void forget_read(const Read& read);
    bool must_report() const;
    bool idle() const;
    int64_t microseconds_to_report() const;
    void fill(Report& report);
    void ask_for_help();
    void help();
    void wake();
    std::vector<Owned> take_back(const std::function<bool(const Read&)>& which);

    const Open open_;
    const Hasher& hasher_;
    const QueueLimits limits_;
    const pid_t process_;

    mutable std::mutex lock_;  // of all that follows
    std::unique_ptr<Device> device_;
    const char* device_name_ = "";
    std::vector<Owned> waiting_;  // a heap
    std::unordered_map<Read*, Owned> flying_;
    size_t flying_bytes_ = 0;
    std::deque<Owned> landed_;  // are to be hashed
    size_t landed_bytes_ = 0;
    std::vector<const Read*> checking_;  // are being hashed
    std::vector<Owned> finished_, telling_;
    Clock::time_point first_finished_{};
    bool urgent_ = false;
    std::unordered_map<uint64_t, size_t> left_;  // reads of each load
    std::vector<uint64_t> over_;
    uint64_t next_number_ = 0;
    bool closed_ = false, abandoned_ = false, asleep_ = false;

    std::condition_variable work_;
    size_t helpers_ = 0, idle_helpers_ = 0;
};

}  // namespace weightpager

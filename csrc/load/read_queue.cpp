#include "read_queue.hpp"

#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <thread>

namespace weightpager {
namespace {

struct Later {
    bool operator()(const std::unique_ptr<Read>& a, const std::unique_ptr<Read>& b) const {
        return a->priority != b->priority ? a->priority > b->priority : a->number > b->number;
    }
};

}  // namespace

ReadQueue::ReadQueue(Open open, const Hasher& hasher, const QueueLimits& limits)
    : open_(std::move(open)), hasher_(hasher), limits_(limits), process_(getpid()) {}

ReadQueue::~ReadQueue() {
    if (getpid() != process_) static_cast<void>(device_.release());  // it is the parent's
}

bool ReadQueue::add(uint64_t load, int priority, bool cancellable, std::vector<Read> reads) {
    const std::lock_guard<std::mutex> held(lock_);
    if (closed_) return false;
    if (reads.empty()) over_.push_back(load);
    if (!reads.empty()) left_[load] += reads.size();
    for (Read& read : reads) {
        read.load = load;
        read.priority = priority;
        read.cancellable = cancellable;
        read.number = next_number_++;
        waiting_.push_back(std::make_unique<Read>(std::move(read)));
        std::push_heap(waiting_.begin(), waiting_.end(), Later());
    }
    wake();
    return true;
}

bool ReadQueue::drive(Report& report) {
    std::vector<Read*> ended;
    Held held(lock_);
    telling_.clear();
    if (!device_ && !closed_) {
        device_ = open_();
        device_name_ = device_->name();
    }
    while (device_ && !abandoned_) {
        begin_some();
        if (must_report()) {
            fill(report);
            return true;
        }
        if (closed_ && idle()) break;
        int64_t microseconds = landed_.empty() ? microseconds_to_report() : 0;
        // Helpers wake it only for what must be told at once. While they hash, it looks by itself for what else there is.
        if (microseconds < 0 && idle_helpers_ < helpers_) microseconds = limits_.group_microseconds;
        asleep_ = microseconds != 0;
        held.unlock();
        ended.clear();
        device_->wait(ended, microseconds);
        held.lock();
        asleep_ = false;
        device_name_ = device_->name();  // another one than before, where the system refuses a ring
        land(ended);
        ask_for_help();
        check_one(held);
    }
    if (flying_.empty()) device_.reset();  // else what hangs may still end, and be written to its slots
    return false;
}

std::vector<int64_t> ReadQueue::cancel(const uint8_t* keep, size_t count) {
    const std::lock_guard<std::mutex> held(lock_);
    const auto kept = [&](int64_t page) { return static_cast<size_t>(page) < count && keep[page] != 0; };
    const auto gone = take_back([&](const Read& read) {
        return read.cancellable && std::none_of(read.pages.begin(), read.pages.end(), kept);
    });
    std::vector<int64_t> pages;
    for (const Owned& read : gone) {
        pages.insert(pages.end(), read->pages.begin(), read->pages.end());
        forget_read(*read);
    }
    wake();
    return pages;
}

void ReadQueue::withdraw(uint64_t load) {
    const std::lock_guard<std::mutex> held(lock_);
    for (const Owned& read : take_back([&](const Read& read) { return read.load == load; })) forget_read(*read);
    wake();
}

std::vector<int64_t> ReadQueue::outstanding() const {
    const std::lock_guard<std::mutex> held(lock_);
    std::vector<int64_t> pages;
    const auto note = [&](const Read& read) {
        if (read.cancellable) pages.insert(pages.end(), read.pages.begin(), read.pages.end());
    };
    for (const auto& flying : flying_) note(*flying.second);
    for (const Read* read : checking_) note(*read);
    for (const Owned& read : landed_) note(*read);
    for (const std::vector<Owned>* reads : {&waiting_, &finished_, &telling_})
        for (const Owned& read : *reads) note(*read);
    return pages;
}

std::vector<Told> ReadQueue::close() {
    const std::lock_guard<std::mutex> held(lock_);
    closed_ = true;
    std::vector<Told> dropped;
    for (const Owned& read : take_back([](const Read&) { return true; })) dropped.push_back({read->load, read->pages});
    wake();
    work_.notify_all();
    return dropped;
}

void ReadQueue::abandon() {
    const std::lock_guard<std::mutex> held(lock_);
    abandoned_ = true;
    wake();
}

size_t ReadQueue::in_flight() const {
    const std::lock_guard<std::mutex> held(lock_);
    return flying_.size();
}

const char* ReadQueue::device() const {
    const std::lock_guard<std::mutex> held(lock_);
    return device_name_;
}

void ReadQueue::begin_some() {
    while (!waiting_.empty() && flying_.size() < limits_.reads && flying_bytes_ < limits_.bytes) {
        std::pop_heap(waiting_.begin(), waiting_.end(), Later());
        Owned read = std::move(waiting_.back());
        waiting_.pop_back();
        Read& begun = *read;
        flying_bytes_ += begun.bytes();
        flying_.emplace(&begun, std::move(read));
        device_->begin(begun);
    }
}

void ReadQueue::land(const std::vector<Read*>& ended) {
    for (Read* read : ended) {
        switch (read->take_result()) {
            case Progress::again:
                device_->begin(*read);
                break;
            case Progress::complete:
                landed_bytes_ += read->bytes();
                landed_.push_back(take_flying(read));
                break;
            case Progress::failed:
                finish(take_flying(read));
                break;
        }
    }
}

ReadQueue::Owned ReadQueue::take_flying(Read* read) {
    const auto place = flying_.find(read);
    Owned owned = std::move(place->second);
    flying_.erase(place);
    flying_bytes_ -= owned->bytes();
    return owned;
}

// Hashes the read that landed first, if there is one; others may have the lock meanwhile.
void ReadQueue::check_one(Held& held) {
    if (landed_.empty()) return;
    Owned read = std::move(landed_.front());
    landed_.pop_front();
    landed_bytes_ -= read->bytes();
    checking_.push_back(read.get());
    held.unlock();
    read->check(hasher_);
    held.lock();
    checking_.erase(std::find(checking_.begin(), checking_.end(), read.get()));
    finish(std::move(read));
}

void ReadQueue::finish(Owned read) {
    if (finished_.empty()) first_finished_ = Clock::now();
    urgent_ = urgent_ || read->failure != Failure::none;
    forget_read(*read);
    finished_.push_back(std::move(read));
}

void ReadQueue::forget_read(const Read& read) {
    const auto place = left_.find(read.load);
    if (--place->second != 0) return;
    left_.erase(place);
    over_.push_back(read.load);
    urgent_ = true;
}

bool ReadQueue::idle() const {
    return waiting_.empty() && flying_.empty() && landed_.empty() && checking_.empty();
}

bool ReadQueue::must_report() const {
    if (finished_.empty()) return !over_.empty();
    return urgent_ || idle() || Clock::now() - first_finished_ >= std::chrono::microseconds(limits_.group_microseconds);
}

// Microseconds until what has finished must be reported; negative where nothing has.
int64_t ReadQueue::microseconds_to_report() const {
    if (finished_.empty()) return -1;
    const auto since = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - first_finished_).count();
    return std::max<int64_t>(1, limits_.group_microseconds - since);
}

void ReadQueue::fill(Report& report) {
    for (const Owned& read : finished_) {
        if (read->failure != Failure::none) {
            report.told.push_back({read->load, read->pages, read->failure, read->error, read->corrupt_page});
            continue;
        }
        const auto same = std::find_if(report.told.begin(), report.told.end(), [&](const Told& told) {
            return told.load == read->load && told.failure == Failure::none;
        });
        if (same == report.told.end())
            report.told.push_back({read->load, read->pages});
        else
            same->pages.insert(same->pages.end(), read->pages.begin(), read->pages.end());
    }
    report.over = std::move(over_);
    over_.clear();
    telling_ = std::move(finished_);
    finished_.clear();
    urgent_ = false;
}

void ReadQueue::ask_for_help() {
    if (landed_bytes_ <= limits_.backlog) return;
    if (idle_helpers_ > 0) {
        work_.notify_one();
    } else if (helpers_ < limits_.helpers && !closed_) {
        try {
            std::thread([queue = shared_from_this()] { queue->help(); }).detach();
            ++helpers_;
        } catch (const std::system_error&) {  // no thread to be had: one hashes alone
        }
    }
}

void ReadQueue::help() {
    Held held(lock_);
    while (!closed_) {
        while (!landed_.empty()) check_one(held);
        if (asleep_ && must_report()) wake();
        ++idle_helpers_;
        work_.wait(held, [&] { return closed_ || !landed_.empty(); });
        --idle_helpers_;
    }
    if (asleep_) wake();
}

void ReadQueue::wake() {
    if (device_ && asleep_) device_->wake();
}

std::vector<ReadQueue::Owned> ReadQueue::take_back(const std::function<bool(const Read&)>& which) {
    std::vector<Owned> gone, stay;
    for (Owned& read : waiting_) (which(*read) ? gone : stay).push_back(std::move(read));
    waiting_ = std::move(stay);
    std::make_heap(waiting_.begin(), waiting_.end(), Later());
    return gone;
}

}  // namespace weightpager

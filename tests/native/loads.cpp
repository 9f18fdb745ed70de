// Tests of loads without Python: with a device whose reads end as a test wants, and with the real ones. Exit code 1 if one
// fails.
#include <fcntl.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "load/read_queue.hpp"
#include "own_reads.hpp"
#include "scripted.hpp"

using namespace weightpager;

namespace {

std::shared_ptr<ReadQueue> queue_of(Script& script, const QueueLimits& limits = {}) {
    return std::make_shared<ReadQueue>([&] { return std::make_unique<Scripted>(script); }, *hashers()[0], limits);
}

// Drives until as many loads are over; what was told.
std::vector<Told> driven(ReadQueue& queue, size_t loads = 1) {
    std::vector<Told> told;
    for (size_t over = 0; over < loads;) {
        Report report;
        if (!queue.drive(report)) break;
        told.insert(told.end(), report.told.begin(), report.told.end());
        over += report.over.size();
    }
    return told;
}

void neighbours_are_one_read() {
    Pages pages({1, 2, 3, 7, 8, 9, 10, 11, 12});
    pages.files[2] = 5;
    pages.offsets[8] += 1;
    std::vector<std::vector<int64_t>> found;
    for (const Read& read : pages.reads()) found.push_back(read.pages);
    EXPECT((found == std::vector<std::vector<int64_t>>{{1, 2}, {3}, {7, 8, 9, 10}, {11}, {12}}));
    Pages rising({1, 2, 4});
    rising.slots = {0, 1, 2};
    const std::vector<Read> reads = rising.reads();
    EXPECT(reads[0].views.size() == 1 && reads[0].views[0].iov_len == 2 * kPage);
}

void a_load_comes_and_is_told_at_once() {
    Script script;
    QueueLimits limits;
    limits.group_microseconds = 60'000'000;
    const auto queue = queue_of(script, limits);
    Pages pages({1, 2, 3, 7, 9});
    EXPECT(queue->add(5, 1, true, pages.reads()));
    EXPECT(queue->outstanding().size() == 5);
    Report report;
    EXPECT(queue->drive(report));
    EXPECT(report.told.size() == 1 && report.told[0].load == 5 && report.told[0].pages.size() == 5);
    EXPECT(report.over == std::vector<uint64_t>{5});
    EXPECT(pages.right());
    EXPECT(queue->outstanding().size() == 5);  // whoever was told may not have heard yet
    queue->close();
    EXPECT(!queue->drive(report));
    EXPECT(queue->outstanding().empty());
    EXPECT(!queue->add(6, 1, true, pages.reads()));
}

void short_and_interrupted_reads_go_on() {
    Script script;
    std::mt19937 random(7);
    script.result = [&](Read& read) -> int64_t {
        if (random() % 4 == 0) return random() % 2 ? -EINTR : -EAGAIN;
        return 1 + static_cast<int64_t>(random() % (read.bytes() - read.done));
    };
    const auto queue = queue_of(script);
    Pages pages({1, 2, 3, 4, 5, 6, 20, 21, 22, 40});
    queue->add(0, 1, true, pages.reads());
    for (const Told& told : driven(*queue)) EXPECT(told.failure == Failure::none);
    EXPECT(pages.right());
}

void what_fails_fails_alone() {
    Script script;
    script.result = [](Read& read) -> int64_t {
        if (read.pages[0] == 10) return -EIO;
        if (read.pages[0] == 20) return read.done == 0 ? 100 : 0;
        return static_cast<int64_t>(read.bytes() - read.done);
    };
    const auto queue = queue_of(script);
    Pages pages({1, 10, 11, 20, 30, 31, 40});
    pages.expected[5 * 32] ^= 1;  // of page 31
    queue->add(0, 1, true, pages.reads());
    std::map<int64_t, Told> failed;
    std::set<int64_t> came;
    for (const Told& told : driven(*queue)) {
        if (told.failure == Failure::none)
            came.insert(told.pages.begin(), told.pages.end());
        else
            failed[told.pages[0]] = told;
    }
    EXPECT((came == std::set<int64_t>{1, 40}));
    EXPECT(failed.size() == 3);
    EXPECT(failed[10].failure == Failure::storage && failed[10].error == EIO && failed[10].pages.size() == 2);
    EXPECT(failed[20].failure == Failure::end_of_file);
    EXPECT(failed[30].failure == Failure::corrupt && failed[30].corrupt_page == 31);
}

void what_is_urgent_overtakes_what_has_not_begun() {
    Script script;
    QueueLimits limits;
    limits.reads = 1;
    const auto queue = queue_of(script, limits);
    Pages late({1, 3, 5}), wanted({11, 13}), urgent({21});
    queue->add(0, 2, true, late.reads());
    queue->add(1, 1, true, wanted.reads());
    queue->add(2, 0, true, urgent.reads());
    driven(*queue, 3);
    EXPECT((script.begun == std::vector<int64_t>{21, 11, 13, 1, 3, 5}));
    EXPECT(script.most == 1);
}

void bytes_in_flight_are_bounded() {
    Script script;
    script.result = [](Read&) { return kHangs; };
    QueueLimits limits;
    limits.bytes = 6 * kPage;
    const auto queue = queue_of(script, limits);
    Pages pages({1, 2, 3, 4, 11, 12, 13, 14, 21, 31});
    queue->add(0, 1, true, pages.reads());
    std::thread driver([&] { driven(*queue); });
    while (queue->in_flight() < 2) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT(queue->in_flight() == 2);
    script.result = [](Read& read) { return static_cast<int64_t>(read.bytes()); };
    script.resume();
    driver.join();
    EXPECT(pages.right());
}

void what_has_not_begun_is_taken_back() {
    Script script;
    script.result = [](Read& read) { return read.pages[0] == 1 ? kHangs : static_cast<int64_t>(read.bytes()); };
    QueueLimits limits;
    limits.reads = 1;
    const auto queue = queue_of(script, limits);
    Pages cancellable({1, 3, 5, 6}), own({11}), other({21});
    queue->add(0, 1, true, cancellable.reads());
    queue->add(1, 1, false, own.reads());
    queue->add(2, 1, false, other.reads());
    std::thread driver([&] {
        const std::vector<Told> told = driven(*queue, 3);
        std::set<int64_t> pages;
        for (const Told& one : told) pages.insert(one.pages.begin(), one.pages.end());
        EXPECT((pages == std::set<int64_t>{1, 5, 6, 11}));
    });
    while (queue->in_flight() < 1) std::this_thread::yield();
    const std::vector<uint8_t> keep = {0, 0, 0, 0, 0, 0, 1};
    EXPECT(queue->cancel(keep.data(), keep.size()) == std::vector<int64_t>{3});
    queue->withdraw(2);
    script.resume();
    driver.join();
    EXPECT((script.begun == std::vector<int64_t>{1, 5, 11}));
}

// Though nothing else happens that would be told.
void a_load_that_nothing_is_left_of_is_over() {
    Script script;
    script.result = [](Read&) { return kHangs; };
    QueueLimits limits;
    limits.reads = 1;
    const auto queue = queue_of(script, limits);
    Pages hanging({1}), withdrawn({3}), cancelled({5});
    queue->add(0, 1, true, hanging.reads());
    queue->add(1, 1, false, withdrawn.reads());
    queue->add(2, 1, true, cancelled.reads());
    std::atomic<size_t> over{0};
    std::thread driver([&] {
        Report report;
        while (queue->drive(report)) {
            EXPECT(report.told.empty());
            over += report.over.size();
            report = {};
        }
    });
    const auto are_over = [&](size_t loads) {
        for (int i = 0; i < 5000 && over < loads; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return over == loads;
    };
    while (queue->in_flight() < 1) std::this_thread::yield();
    queue->withdraw(1);
    EXPECT(are_over(1));
    EXPECT(queue->cancel(nullptr, 0) == std::vector<int64_t>{5});
    EXPECT(are_over(2));
    queue->add(3, 1, true, {});
    EXPECT(are_over(3));
    queue->close();
    queue->abandon();
    driver.join();
}

void a_read_that_hangs_keeps_nothing_but_itself() {
    Script script;
    script.result = [](Read& read) { return read.pages[0] == 3 ? kHangs : static_cast<int64_t>(read.bytes()); };
    QueueLimits limits;
    limits.reads = 2;
    const auto queue = queue_of(script, limits);
    Pages pages({1, 3, 5, 7});
    queue->add(0, 1, true, pages.reads());
    Report report;
    std::set<int64_t> came;
    while (came.size() < 3 && queue->drive(report)) {
        for (const Told& told : report.told) came.insert(told.pages.begin(), told.pages.end());
        report = {};
    }
    EXPECT((came == std::set<int64_t>{1, 5, 7}));
    script.result = [](Read&) { return kHangs; };
    Pages more({20, 22});
    queue->add(1, 1, true, more.reads());
    std::thread driver([&] { EXPECT(!queue->drive(report)); });
    while (queue->in_flight() < 2) std::this_thread::yield();
    const std::vector<Told> dropped = queue->close();
    EXPECT(dropped.size() == 1 && dropped[0].load == 1 && dropped[0].pages == std::vector<int64_t>{22});
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    queue->abandon();
    driver.join();
    EXPECT(queue->in_flight() == 2);
}

// Whoever closes has still to tell its owner of what was dropped.
// A device that only the process which opened it may close.
class OfOneProcess : public Scripted {
   public:
    using Scripted::Scripted;
    ~OfOneProcess() override {
        if (getpid() != process_) _exit(1);
    }

   private:
    const pid_t process_ = getpid();
};

void a_forked_process_leaves_the_device_to_its_parent() {
    Script script;
    script.result = [](Read&) { return kHangs; };
    auto queue = std::make_shared<ReadQueue>([&] { return std::make_unique<OfOneProcess>(script); }, *hashers()[0],
                                             QueueLimits());
    Pages pages({1});
    queue->add(0, 1, true, pages.reads());
    Report report;
    std::thread driver([&] { EXPECT(!queue->drive(report)); });
    while (queue->in_flight() == 0) std::this_thread::yield();
    queue->abandon();
    driver.join();
    const pid_t child = fork();
    if (child == 0) {
        queue.reset();
        _exit(0);
    }
    int status = -1;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

void a_load_that_closing_has_cut_short_is_not_over() {
    Script script;
    script.result = [](Read& read) { return read.pages[0] == 1 ? kHangs : static_cast<int64_t>(read.bytes()); };
    QueueLimits limits;
    limits.reads = 1;
    const auto queue = queue_of(script, limits);
    Pages pages({1, 3});
    queue->add(0, 1, true, pages.reads());
    Report report;
    std::thread driver([&] { EXPECT(queue->drive(report)); });
    while (queue->in_flight() < 1) std::this_thread::yield();
    const std::vector<Told> dropped = queue->close();
    EXPECT(dropped.size() == 1 && dropped[0].load == 0 && dropped[0].pages == std::vector<int64_t>{3});
    script.resume();
    driver.join();
    EXPECT(report.told.size() == 1 && report.told[0].pages == std::vector<int64_t>{1} && report.over.empty());
    EXPECT(!queue->drive(report));
}

// Threads that add and take back, while others hash.
void many_threads_lose_nothing() {
    Script script;
    std::mt19937 chance(3);
    script.result = [&](Read& read) -> int64_t {
        return chance() % 3 == 0 ? 1 + static_cast<int64_t>(chance() % (read.bytes() - read.done))
                                 : static_cast<int64_t>(read.bytes() - read.done);
    };
    QueueLimits limits;
    limits.backlog = 0;
    limits.group_microseconds = 50;
    const auto queue = queue_of(script, limits);
    std::vector<std::unique_ptr<Pages>> loads;
    for (int64_t i = 0; i < 40; ++i) {
        std::vector<int64_t> pages;
        for (int64_t page = 0; page < 12; ++page)
            if (page % 5 != i % 5) pages.push_back(100 * i + page);
        loads.push_back(std::make_unique<Pages>(pages));
    }
    std::mutex lock;
    std::multiset<int64_t> told, taken;
    std::thread driver([&] {
        Report report;
        while (queue->drive(report)) {
            const std::lock_guard<std::mutex> held(lock);
            for (const Told& one : report.told) told.insert(one.pages.begin(), one.pages.end());
            report = {};
        }
    });
    std::vector<std::thread> adders;
    for (size_t first = 0; first < 4; ++first)
        adders.emplace_back([&, first] {
            for (size_t i = first; i < loads.size(); i += 4) queue->add(i, static_cast<int>(i % 3), true, loads[i]->reads());
        });
    std::thread taker([&] {
        for (int i = 0; i < 20; ++i) {
            const std::vector<uint8_t> keep(2000, 1);
            const std::vector<int64_t> gone = queue->cancel(keep.data(), keep.size());
            queue->outstanding();
            const std::lock_guard<std::mutex> held(lock);
            taken.insert(gone.begin(), gone.end());
        }
    });
    for (std::thread& adder : adders) adder.join();
    taker.join();
    size_t wanted = 0;
    for (const auto& load : loads) wanted += load->pages.size();
    for (;;) {
        const std::lock_guard<std::mutex> held(lock);
        if (told.size() + taken.size() >= wanted) break;
    }
    queue->close();
    driver.join();
    std::set<int64_t> every(told.begin(), told.end());
    every.insert(taken.begin(), taken.end());
    EXPECT(told.size() + taken.size() == wanted && every.size() == wanted);
    for (const auto& load : loads)
        if (std::none_of(load->pages.begin(), load->pages.end(), [&](int64_t page) { return taken.count(page) > 0; }))
            EXPECT(load->right());
}

// Where the thread that drives and one that helps wait for each other.
struct Meeting {
    std::mutex lock;
    std::condition_variable changed;
    std::thread::id driver;
    bool helping = false, sleeping = false;

    void tell(bool& what) {
        const std::lock_guard<std::mutex> held(lock);
        what = true;
        changed.notify_all();
    }
    void wait_for(const bool& what) {
        std::unique_lock<std::mutex> held(lock);
        changed.wait(held, [&] { return what; });
    }
};

Meeting meeting;  // a hasher is a function without a state of its own

// Who drives hashes one read when a helper has another one, which takes until the driver sleeps.
void compress_at_the_meeting(const uint8_t* const* inputs, size_t blocks, size_t last, const uint32_t* counters,
                             uint32_t flags, uint32_t start, uint32_t end, uint32_t* results) {
    if (std::this_thread::get_id() == meeting.driver) {
        meeting.wait_for(meeting.helping);
    } else {
        meeting.tell(meeting.helping);
        meeting.wait_for(meeting.sleeping);
    }
    hashers()[0]->compress(inputs, blocks, last, counters, flags, start, end, results);
}

class Sleeper : public Scripted {
   public:
    using Scripted::Scripted;

    void wait(std::vector<Read*>& ended, int64_t microseconds) override {
        if (microseconds != 0 && meeting.helping) meeting.tell(meeting.sleeping);
        Scripted::wait(ended, microseconds);
    }
};

// Though no other read ends, and the load isn't over.
void what_a_helper_has_finished_is_told_soon() {
    Script script;
    script.result = [](Read& read) { return read.pages[0] == 5 ? kHangs : static_cast<int64_t>(read.bytes()); };
    QueueLimits limits;
    limits.backlog = 0;
    static const Hasher hasher{"meeting", hashers()[0]->lanes, &compress_at_the_meeting};
    const auto queue = std::make_shared<ReadQueue>([&] { return std::make_unique<Sleeper>(script); }, hasher, limits);
    Pages pages({1, 3, 5});
    queue->add(0, 1, true, pages.reads());
    std::atomic<size_t> told{0};
    std::thread driver([&] {
        meeting.driver = std::this_thread::get_id();
        Report report;
        while (queue->drive(report)) {
            for (const Told& one : report.told) told += one.pages.size();
            report = {};
        }
    });
    for (int i = 0; i < 5000 && told < 2; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    EXPECT(told == 2);
    queue->close();
    queue->abandon();
    driver.join();
}

// A file without a name.
int file_of(int64_t pages) {
    char path[] = "/tmp/load_tests.XXXXXX";
    const int file = mkstemp(path);
    unlink(path);
    for (int64_t page = 0; page < pages; ++page)
        if (pwrite(file, content(page).data(), kPage, page * static_cast<int64_t>(kPage)) < 0) std::abort();
    return file;
}

// The system has taken what the script knows of, and then refuses.
class Refused : public Scripted {
   public:
    Refused(Script& script, size_t takes) : Scripted(script), takes_(takes) {}

    void begin(Read& read) override {
        if (takes_ == 0) return unbegun_.push_back(&read);
        --takes_;
        Scripted::begin(read);
    }

    void wait(std::vector<Read*>& ended, int64_t microseconds) override { Scripted::wait(ended, takes_ == 0 ? 0 : microseconds); }

    bool refused(std::vector<Read*>& unbegun) override {
        if (takes_ > 0) return false;
        unbegun.insert(unbegun.end(), unbegun_.begin(), unbegun_.end());
        unbegun_.clear();
        return true;
    }

   private:
    size_t takes_;
    std::vector<Read*> unbegun_;
};

void threads_go_on_where_a_device_is_refused() {
    const int file = file_of(64);
    Script script;
    script.result = [](Read& read) { return read.pages[0] == 5 ? kHangs : static_cast<int64_t>(read.bytes()); };
    const auto open = [&] { return or_threads(std::make_unique<Refused>(script, 3), 2); };
    const auto queue = std::make_shared<ReadQueue>(open, *hashers()[0], QueueLimits());
    Pages before({1, 3, 5, 7, 9}, file), after({11, 13}, file);
    queue->add(0, 1, true, before.reads());
    std::thread driver([&] {
        for (const Told& told : driven(*queue, 2)) EXPECT(told.failure == Failure::none);
    });
    const auto are_left = [&](std::vector<int64_t> pages) {
        for (int i = 0; i < 5000 && queue->outstanding() != pages; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return queue->outstanding() == pages;
    };
    EXPECT(are_left({5}));
    queue->add(1, 1, true, after.reads());
    EXPECT(are_left({5}));
    script.resume();  // what the system had in hand ends late
    driver.join();
    EXPECT(before.right() && after.right());
    EXPECT((script.begun == std::vector<int64_t>{1, 3, 5}));
    EXPECT(std::string(queue->device()) == "threads");
    close(file);
}

void real_devices_read_files() {
    const int file = file_of(64);
    for (const bool ring : {true, false}) {
        QueueLimits limits;
        limits.reads = 4;
        const auto queue =
            std::make_shared<ReadQueue>([=] { return open_device(ring, 4); }, *hashers()[0], limits);
        std::thread driver([&] {
            Report report;
            while (queue->drive(report)) report = {};
        });
        std::mt19937 random(1);
        std::vector<std::unique_ptr<Pages>> loads;
        for (uint64_t i = 0; i < 30; ++i) {
            std::vector<int64_t> pages;
            for (int64_t page = 0; page < 64; ++page)
                if (random() % 3 != 0) pages.push_back(page);
            loads.push_back(std::make_unique<Pages>(pages, file));
            queue->add(i, 1, true, loads.back()->reads());
        }
        Pages beyond({64}, file), nowhere({1}, -1);
        queue->add(100, 1, true, beyond.reads());
        queue->add(101, 1, true, nowhere.reads());
        while (!queue->outstanding().empty()) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            queue->add(1000, 1, true, {});  // it comes round: what was told is known now
        }
        queue->close();
        driver.join();
        for (const auto& load : loads) EXPECT(load->right());
        std::cout << "read by " << queue->device() << std::endl;
    }
    close(file);
}

// Threads can't be started while this lives: their stacks would be larger than all memory that there can be.
class NoThreads {
   public:
    NoThreads() {
        pthread_getattr_default_np(&kept_);
        pthread_attr_t huge;
        pthread_attr_init(&huge);
        pthread_attr_setstacksize(&huge, size_t{1} << 50);
        EXPECT(pthread_setattr_default_np(&huge) == 0);
        pthread_attr_destroy(&huge);
    }
    ~NoThreads() {
        pthread_setattr_default_np(&kept_);
        pthread_attr_destroy(&kept_);
    }

   private:
    pthread_attr_t kept_;
};

void reads_fail_while_no_thread_can_be_started() {
    const int file = file_of(8);
    const auto queue = std::make_shared<ReadQueue>([] { return open_device(false, 4); }, *hashers()[0], QueueLimits());
    Pages pages({1, 2, 3, 5, 7}, file);
    {
        const NoThreads none;
        queue->add(0, 1, true, pages.reads());
        size_t failed = 0;
        for (const Told& told : driven(*queue)) failed += told.failure == Failure::no_thread ? told.pages.size() : 0;
        EXPECT(failed == 5);
    }
    queue->add(1, 1, true, pages.reads());
    for (const Told& told : driven(*queue)) EXPECT(told.failure == Failure::none);
    EXPECT(pages.right());
    close(file);
}

}  // namespace

int main() {
    neighbours_are_one_read();
    a_load_comes_and_is_told_at_once();
    short_and_interrupted_reads_go_on();
    what_fails_fails_alone();
    what_is_urgent_overtakes_what_has_not_begun();
    bytes_in_flight_are_bounded();
    what_has_not_begun_is_taken_back();
    a_load_that_nothing_is_left_of_is_over();
    a_read_that_hangs_keeps_nothing_but_itself();
    a_forked_process_leaves_the_device_to_its_parent();
    a_load_that_closing_has_cut_short_is_not_over();
    many_threads_lose_nothing();
    what_a_helper_has_finished_is_told_soon();
    threads_go_on_where_a_device_is_refused();
    real_devices_read_files();
    reads_fail_while_no_thread_can_be_started();
    test_own_reads();
    std::cout << (failures == 0 ? "loads: all is well" : "loads: failed") << std::endl;
    return failures == 0 ? 0 : 1;
}

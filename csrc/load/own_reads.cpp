#include "own_reads.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <numeric>

namespace weightpager {
namespace {

constexpr size_t kLeastPage = 4096;            // of the machine
constexpr int64_t kSliceMicroseconds = 10000;  // between two questions whether patience is left

// Memory for pages. Between two reads it is the machine's for the taking, which mostly leaves it: then it is there at once.
class Landing {
   public:
    Landing() = default;
    Landing(const Landing&) = delete;
    Landing& operator=(const Landing&) = delete;
    ~Landing() { unmap(); }

    uint8_t* of(size_t bytes) {
        if (bytes > bytes_) {
            unmap();
            void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (found == MAP_FAILED) throw std::bad_alloc();
            madvise(found, bytes, MADV_DONTFORK);  // a child's copy would take it from the device
            memory_ = static_cast<uint8_t*>(found);
            bytes_ = bytes;
        }
        // Taken back before a device may write there: older kernels can lose what is read into memory that is free.
        for (size_t at = 0; at < bytes; at += kLeastPage) static_cast<volatile uint8_t*>(memory_)[at] = 0;
        return memory_;
    }

    void free() {
        if (bytes_ != 0 && madvise(memory_, bytes_, MADV_FREE) != 0) madvise(memory_, bytes_, MADV_DONTNEED);
    }

   private:
    void unmap() {
        if (memory_ != nullptr) munmap(memory_, bytes_);
        memory_ = nullptr;
        bytes_ = 0;
    }

    uint8_t* memory_ = nullptr;
    size_t bytes_ = 0;
};

}  // namespace

struct OwnReads::Lane {
    std::unique_ptr<Device> device;
    Landing landing;
    std::vector<Read> reads;
    std::vector<Read*> ended;
    size_t flying = 0;
    bool taken = true;
};

OwnReads::OwnReads(Open open, const Hasher& hasher, size_t depth, size_t lanes)
    : open_(std::move(open)), hasher_(hasher), depth_(depth), most_lanes_(lanes), process_(getpid()) {}

OwnReads::~OwnReads() {
    const bool forked = getpid() != process_;  // then the lanes are its parent's
    if (!forked) collect_hanging();            // nobody has the lock any more
    for (std::unique_ptr<Lane>& lane : lanes_)
        if (forked || lane->flying != 0) lane.release();
}

Outcome OwnReads::read(const PagesToRead& wanted, size_t page_bytes, size_t most, Patience& patience, const Use& use) {
    Outcome outcome;
    Lane* lane = take(patience, outcome);
    if (lane == nullptr) return outcome;
    Flight flight(*this, *lane, wanted, page_bytes, most);
    outcome = flight.wait(patience);
    if (outcome.failure == Failure::none) use(flight.landed());
    return outcome;
}

std::unique_ptr<OwnReads::Flight> OwnReads::begin(const PagesToRead& wanted, size_t page_bytes, size_t most) {
    if (getpid() != process_) return nullptr;
    Lane* lane;
    {
        const Held held(lock_);
        lane = closed_ ? nullptr : free_lane();
    }
    return lane == nullptr ? nullptr : std::make_unique<Flight>(*this, *lane, wanted, page_bytes, most);
}

bool OwnReads::close(std::chrono::microseconds wait) {
    const auto end = std::chrono::steady_clock::now() + wait;
    Held held(lock_);
    closed_ = true;
    changed_.notify_all();
    for (;;) {
        collect_hanging();
        const auto works = [](const std::unique_ptr<Lane>& lane) { return lane->taken || lane->flying != 0; };
        if (std::none_of(lanes_.begin(), lanes_.end(), works)) break;
        if (std::chrono::steady_clock::now() >= end) return false;
        changed_.wait_for(held, std::chrono::microseconds(kSliceMicroseconds));
    }
    lanes_.clear();
    return true;
}

const char* OwnReads::device() const {
    const Held held(lock_);
    return device_name_;
}

// A lane of the caller's own; none if it is closed, or patience ends before.
OwnReads::Lane* OwnReads::take(Patience& patience, Outcome& outcome) {
    if (getpid() != process_) {  // the lanes are its parent's, and so may be the lock
        outcome.failure = Failure::closed;
        return nullptr;
    }
    Held held(lock_);
    for (;;) {
        if (closed_) {
            outcome.failure = Failure::closed;
            return nullptr;
        }
        if (Lane* lane = free_lane()) return lane;
        if (changed_.wait_for(held, std::chrono::microseconds(kSliceMicroseconds)) == std::cv_status::no_timeout) continue;
        held.unlock();
        if (!patience.left()) {
            outcome.failure = Failure::hangs;
            return nullptr;
        }
        held.lock();
    }
}

// A lane that is the caller's now; nothing if all are others'. The lock is held.
OwnReads::Lane* OwnReads::free_lane() {
    collect_hanging();
    for (const std::unique_ptr<Lane>& lane : lanes_) {
        if (lane->taken || lane->flying != 0) continue;
        lane->taken = true;
        return lane.get();
    }
    if (lanes_.size() == most_lanes_) return nullptr;
    lanes_.push_back(std::make_unique<Lane>());
    return lanes_.back().get();
}

void OwnReads::give_back(Lane& lane) {
    if (lane.flying == 0) lane.landing.free();
    const Held held(lock_);
    if (lane.device) device_name_ = lane.device->name();
    lane.taken = false;
    changed_.notify_all();
}

// Lanes whose callers gave storage up are free again once their reads have ended, however. The lock is held.
void OwnReads::collect_hanging() {
    for (const std::unique_ptr<Lane>& lane : lanes_) {
        if (lane->taken || lane->flying == 0) continue;
        lane->ended.clear();
        lane->device->wait(lane->ended, 0);
        lane->flying -= lane->ended.size();
    }
}

OwnReads::Flight::Flight(OwnReads& reads, Lane& lane, const PagesToRead& wanted, size_t page_bytes, size_t most)
    : reads_(reads), lane_(lane) {
    try {
        if (!lane.device) lane.device = reads.open_();
        const size_t count = wanted.pages.size();
        uint8_t* memory = lane.landing.of(count * page_bytes);
        memory_ = memory;
        std::vector<int64_t> slots(count);
        std::iota(slots.begin(), slots.end(), 0);
        lane.reads = plan_reads(wanted.sources(memory, slots.data(), page_bytes), most);
        lane.ended.clear();
        begin_some();
        lane.device->wait(lane.ended, 0);  // now the kernel knows of them
    } catch (...) {
        reads.give_back(lane);
        throw;
    }
}

OwnReads::Flight::~Flight() {
    if (getpid() != reads_.process_) return;  // the lane is the parent's
    lane_.flying -= lane_.ended.size();
    lane_.ended.clear();
    reads_.give_back(lane_);
}

size_t OwnReads::Flight::reads() const { return lane_.reads.size(); }

Outcome OwnReads::Flight::wait(Patience& patience) {
    for (;;) {
        while (!lane_.ended.empty()) {  // one by one: should a check throw, the others are still here
            Read& read = *lane_.ended.front();
            lane_.ended.erase(lane_.ended.begin());
            land(read);
        }
        if (outcome_.failure == Failure::none) begin_some();
        if (lane_.flying == 0) return outcome_;
        lane_.device->wait(lane_.ended, kSliceMicroseconds);
        if (!lane_.ended.empty()) {
            patience.came();
        } else if (!patience.left()) {
            return {Failure::hangs};
        }
    }
}

void OwnReads::Flight::begin_some() {
    for (; next_ < lane_.reads.size() && lane_.flying < reads_.depth_; ++next_, ++lane_.flying)
        lane_.device->begin(lane_.reads[next_]);
}

void OwnReads::Flight::land(Read& read) {
    --lane_.flying;
    const Progress progress = read.take_result();
    if (outcome_.failure != Failure::none) return;
    if (progress == Progress::again) {
        lane_.device->begin(read);
        ++lane_.flying;
        return;
    }
    if (progress == Progress::complete) read.check(reads_.hasher_);
    if (read.failure == Failure::none) {
        outcome_.bytes += read.bytes();
        return;
    }
    const bool corrupt = read.failure == Failure::corrupt;
    outcome_ = {read.failure, read.error, corrupt ? read.corrupt_page : read.pages.front(), 0};
}

}  // namespace weightpager

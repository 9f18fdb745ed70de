#include "own_reads.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <numeric>

namespace weightpager {
namespace {

constexpr int64_t kSliceMicroseconds = 10000;  // between two questions whether patience is left
constexpr size_t kKeptBytes = 1 << 16;         // of memory that pages land in, between two reads

// Memory for pages; what it holds doesn't outlast the next read.
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
        return memory_;
    }

    void shrink() {
        if (bytes_ > kKeptBytes) madvise(memory_ + kKeptBytes, bytes_ - kKeptBytes, MADV_DONTNEED);
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
    const std::unique_ptr<Lane, std::function<void(Lane*)>> given_back(lane, [this](Lane* one) { give_back(*one); });
    if (!lane->device) lane->device = open_();
    const size_t count = wanted.pages.size();
    uint8_t* memory = lane->landing.of(count * page_bytes);
    std::vector<int64_t> slots(count);
    std::iota(slots.begin(), slots.end(), 0);
    lane->reads = plan_reads({count, wanted.pages.data(), wanted.files.data(), wanted.offsets.data(), slots.data(),
                              wanted.expected.data(), memory, page_bytes},
                             most);
    outcome = fly(*lane, patience);
    if (outcome.failure != Failure::none) return outcome;
    use(memory);
    outcome.bytes = count * page_bytes;
    return outcome;
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
        collect_hanging();
        for (const std::unique_ptr<Lane>& lane : lanes_) {
            if (lane->taken || lane->flying != 0) continue;
            lane->taken = true;
            return lane.get();
        }
        if (lanes_.size() < most_lanes_) {
            lanes_.push_back(std::make_unique<Lane>());
            return lanes_.back().get();
        }
        if (changed_.wait_for(held, std::chrono::microseconds(kSliceMicroseconds)) == std::cv_status::no_timeout) continue;
        held.unlock();
        if (!patience.left()) {
            outcome.failure = Failure::hangs;
            return nullptr;
        }
        held.lock();
    }
}

void OwnReads::give_back(Lane& lane) {
    if (lane.flying == 0) lane.landing.shrink();
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

// Makes a lane's reads. The first failure counts; what is in flight then is waited for, and no more begins.
Outcome OwnReads::fly(Lane& lane, Patience& patience) {
    Outcome outcome;
    size_t next = 0;
    for (;;) {
        const size_t planned = outcome.failure == Failure::none ? lane.reads.size() : next;
        for (; next < planned && lane.flying < depth_; ++next, ++lane.flying) lane.device->begin(lane.reads[next]);
        if (lane.flying == 0) return outcome;
        lane.ended.clear();
        lane.device->wait(lane.ended, kSliceMicroseconds);
        if (lane.ended.empty()) {
            if (patience.left()) continue;
            outcome.failure = Failure::hangs;
            return outcome;
        }
        patience.came();
        for (Read* read : lane.ended) land(lane, *read, outcome);
    }
}

// What has come of a read; the rest of it begins where storage gave less than was asked for.
void OwnReads::land(Lane& lane, Read& read, Outcome& outcome) {
    --lane.flying;
    if (read.result > 0) read.advance(static_cast<size_t>(read.result));
    const bool again = read.result == -EINTR || read.result == -EAGAIN;
    if (outcome.failure != Failure::none) return;
    if (again || (read.result > 0 && read.done < read.bytes())) {
        lane.device->begin(read);
        ++lane.flying;
        return;
    }
    if (read.result > 0) {
        read.check(hasher_);
    } else {
        read.failure = read.result == 0 ? Failure::end_of_file : Failure::storage;
        read.error = static_cast<int>(-read.result);
    }
    if (read.failure == Failure::none) return;
    const bool corrupt = read.failure == Failure::corrupt;
    outcome = {read.failure, read.error, corrupt ? read.corrupt_page : read.pages.front(), 0};
}

}  // namespace weightpager

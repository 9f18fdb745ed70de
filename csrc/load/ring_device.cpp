#include "device.hpp"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

// What older headers lack; the kernel says whether it has it.
#ifndef IORING_SETUP_COOP_TASKRUN
#define IORING_SETUP_COOP_TASKRUN (1U << 8)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

#if defined(IORING_FEAT_EXT_ARG) && defined(SYS_io_uring_setup)

namespace weightpager {
namespace {

// One mapping of memory that is shared with the kernel.
class Mapping {
   public:
    Mapping(int file, size_t bytes, uint64_t what) : bytes_(bytes) {
        memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, static_cast<off_t>(what));
        if (valid()) madvise(memory_, bytes, MADV_DONTFORK);
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    ~Mapping() {
        if (valid()) munmap(memory_, bytes_);
    }

    bool valid() const { return memory_ != MAP_FAILED; }

    template <class T>
    T* at(size_t offset) const {
        return reinterpret_cast<T*>(static_cast<char*>(memory_) + offset);
    }

   private:
    void* memory_;
    size_t bytes_;
};

uint32_t acquired(const uint32_t* from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
void release(uint32_t* to, uint32_t value) { __atomic_store_n(to, value, __ATOMIC_RELEASE); }

// A file descriptor that is closed with its owner.
struct File {
    int number = -1;
    ~File() {
        if (number >= 0) close(number);
    }
};

class Ring : public Device {
   public:
    static std::unique_ptr<Device> open(unsigned depth, bool any_thread) {
        auto ring = std::make_unique<Ring>();
        return ring->set_up(depth, any_thread) ? std::move(ring) : nullptr;
    }

    const char* name() const override { return "io_uring"; }

    void begin(Read& read) override {
        io_uring_sqe& entry = next_entry();
        entry.opcode = IORING_OP_READV;
        entry.fd = read.file;
        entry.off = static_cast<uint64_t>(read.offset) + read.done;
        entry.addr = reinterpret_cast<uint64_t>(read.views.data());
        entry.len = static_cast<uint32_t>(read.views.size());
        entry.user_data = reinterpret_cast<uint64_t>(&read);
    }

    void wait(std::vector<Read*>& ended, int64_t microseconds) override {
        if (refused_) return reap(ended);
        if (!bell_watched_) watch_bell();
        reap(ended);
        if (ended.empty() || waiting_ != 0) enter(ended.empty() && microseconds != 0, microseconds);
        reap(ended);
    }

    void wake() override {
        const uint64_t one = 1;
        while (write(bell_.number, &one, sizeof one) < 0 && errno == EINTR) {
        }
    }

    bool refused(std::vector<Read*>& unbegun) override {
        if (!refused_) return false;
        const uint32_t head = acquired(submit_head_);  // what is before it, the kernel has
        for (uint32_t at = head; at != *submit_tail_; ++at)
            if (const uint64_t data = entries_->at<io_uring_sqe>(0)[at & submit_mask_].user_data)
                unbegun.push_back(reinterpret_cast<Read*>(data));
        release(submit_tail_, head);
        return true;
    }

   private:
    bool set_up(unsigned depth, bool any_thread) {
        unsigned entries = 1;
        while (entries < depth + 1) entries *= 2;  // and the bell's
        io_uring_params parameters;
        for (unsigned flags : {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN, 0u}) {
            if (any_thread && (flags & IORING_SETUP_SINGLE_ISSUER) != 0) continue;
            std::memset(&parameters, 0, sizeof parameters);
            parameters.flags = flags;
            ring_.number = static_cast<int>(syscall(SYS_io_uring_setup, entries, &parameters));
            if (ring_.number >= 0 || errno != EINVAL) break;
        }
        constexpr uint32_t kNeeded = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG;
        if (ring_.number < 0 || (parameters.features & kNeeded) != kNeeded) return false;
        bell_.number = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        return bell_.number >= 0 && map(parameters) && may_enter();
    }

    // A sandbox may refuse one call and not the other.
    bool may_enter() const {
        return syscall(SYS_io_uring_enter, ring_.number, 0, 0, IORING_ENTER_GETEVENTS, nullptr, 0) >= 0;
    }

    bool map(const io_uring_params& p) {
        const size_t submissions = p.sq_off.array + p.sq_entries * sizeof(uint32_t);
        const size_t completions = p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe);
        queues_ = std::make_unique<Mapping>(ring_.number, submissions > completions ? submissions : completions,
                                            IORING_OFF_SQ_RING);
        entries_ = std::make_unique<Mapping>(ring_.number, p.sq_entries * sizeof(io_uring_sqe), IORING_OFF_SQES);
        if (!queues_->valid() || !entries_->valid()) return false;
        submit_head_ = queues_->at<uint32_t>(p.sq_off.head);
        submit_tail_ = queues_->at<uint32_t>(p.sq_off.tail);
        submit_mask_ = *queues_->at<uint32_t>(p.sq_off.ring_mask);
        submit_order_ = queues_->at<uint32_t>(p.sq_off.array);
        complete_head_ = queues_->at<uint32_t>(p.cq_off.head);
        complete_tail_ = queues_->at<uint32_t>(p.cq_off.tail);
        complete_mask_ = *queues_->at<uint32_t>(p.cq_off.ring_mask);
        completions_ = queues_->at<io_uring_cqe>(p.cq_off.cqes);
        return true;
    }

    // There is always one: the queue keeps no more reads in flight than the ring has entries for.
    io_uring_sqe& next_entry() {
        const uint32_t tail = *submit_tail_, place = tail & submit_mask_;
        io_uring_sqe& entry = entries_->at<io_uring_sqe>(0)[place];
        std::memset(&entry, 0, sizeof entry);
        submit_order_[place] = place;
        release(submit_tail_, tail + 1);  // the kernel looks when it is entered, by this thread
        ++waiting_;
        return entry;
    }

    void watch_bell() {
        io_uring_sqe& entry = next_entry();
        entry.opcode = IORING_OP_POLL_ADD;
        entry.fd = bell_.number;
        entry.poll_events = POLLIN;
        entry.user_data = 0;
        bell_watched_ = true;
    }

    void enter(bool block, int64_t microseconds) {
        __kernel_timespec time{};
        time.tv_sec = microseconds / 1000000;
        time.tv_nsec = microseconds % 1000000 * 1000;
        io_uring_getevents_arg argument{};
        argument.ts = microseconds < 0 ? 0 : reinterpret_cast<uint64_t>(&time);
        const long submitted = syscall(SYS_io_uring_enter, ring_.number, waiting_, block ? 1 : 0,
                                       IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument, sizeof argument);
        if (submitted > 0) waiting_ -= static_cast<unsigned>(submitted);
        // The caller comes here again, but where a sandbox, say, refuses what it allowed when the ring was opened.
        refused_ = submitted < 0 && errno != EAGAIN && errno != EBUSY && errno != EINTR && errno != ETIME;
    }

    void reap(std::vector<Read*>& ended) {
        uint32_t head = *complete_head_;
        for (const uint32_t tail = acquired(complete_tail_); head != tail; ++head) {
            const io_uring_cqe& entry = completions_[head & complete_mask_];
            if (entry.user_data == 0) {
                bell_watched_ = false;
                uint64_t rung;
                while (read(bell_.number, &rung, sizeof rung) < 0 && errno == EINTR) {
                }
                continue;
            }
            Read* read = reinterpret_cast<Read*>(entry.user_data);
            read->result = entry.res;
            ended.push_back(read);
        }
        release(complete_head_, head);
    }

    File ring_, bell_;
    std::unique_ptr<Mapping> queues_, entries_;
    uint32_t *submit_head_ = nullptr, *submit_tail_ = nullptr, *submit_order_ = nullptr;
    uint32_t *complete_head_ = nullptr, *complete_tail_ = nullptr;
    uint32_t submit_mask_ = 0, complete_mask_ = 0;
    io_uring_cqe* completions_ = nullptr;
    unsigned waiting_ = 0;  // entries that the kernel hasn't taken yet
    bool bell_watched_ = false, refused_ = false;
};

}  // namespace

std::unique_ptr<Device> open_ring(unsigned depth, bool any_thread) { return Ring::open(depth, any_thread); }

}  // namespace weightpager

#define WEIGHTPAGER_RING
#endif
#endif

#if !defined(WEIGHTPAGER_RING)
namespace weightpager {
std::unique_ptr<Device> open_ring(unsigned, bool) { return nullptr; }
}  // namespace weightpager
#endif

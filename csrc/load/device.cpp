#include "device.hpp"

#include <algorithm>
#include <atomic>
#include <utility>

namespace weightpager {
namespace {

using Clock = Pace::Clock;

class OrThreads : public Device {
   public:
    OrThreads(std::unique_ptr<Device> first, unsigned threads) : first_(std::move(first)), threads_(threads) {}
    ~OrThreads() override { delete second_.load(); }

    const char* name() const override { return now().name(); }

    void begin(Read& read) override {
        if (second_ == nullptr) ++of_first_;
        now().begin(read);
    }

    void wait(std::vector<Read*>& ended, int64_t microseconds) override {
        if (second_ == nullptr) {
            collect(ended, microseconds);
            if (!first_->refused(unbegun_)) return;
            change();
        }
        if (of_first_ > 0) {
            collect(ended, 0);
            microseconds = !ended.empty() ? 0 : microseconds < 0 ? kSlice : std::min(microseconds, kSlice);
        }
        now().wait(ended, microseconds);
    }

    void wake() override {
        first_->wake();
        if (Device* second = second_) second->wake();
    }

   private:
    static constexpr int64_t kSlice = 10000;  // microseconds between two looks at what the first device still has

    Device& now() const {
        Device* second = second_;
        return second != nullptr ? *second : *first_;
    }

    void collect(std::vector<Read*>& ended, int64_t microseconds) {
        const size_t before = ended.size();
        first_->wait(ended, microseconds);
        of_first_ -= ended.size() - before;
    }

    void change() {
        second_ = open_threads(threads_).release();
        second_.load()->wake();  // whoever woke the first one just now means this one, too
        of_first_ -= unbegun_.size();
        for (Read* read : unbegun_) second_.load()->begin(*read);
        unbegun_.clear();
    }

    const std::unique_ptr<Device> first_;
    const unsigned threads_;
    std::atomic<Device*> second_{nullptr};  // owned; any thread may wake it
    size_t of_first_ = 0;                   // reads that the first one has begun, and that haven't ended
    std::vector<Read*> unbegun_;
};

class Paced : public Device {
   public:
    Paced(std::unique_ptr<Device> device, std::shared_ptr<Pace> pace) : device_(std::move(device)), pace_(std::move(pace)) {}

    const char* name() const override { return device_->name(); }

    void begin(Read& read) override {
        coming_.push_back({pace_->arrival(read.bytes() - read.done), &read});
        device_->begin(read);
    }

    void wait(std::vector<Read*>& ended, int64_t microseconds) override {
        const Clock::time_point end =
            microseconds < 0 ? Clock::time_point::max() : Clock::now() + std::chrono::microseconds(microseconds);
        for (;;) {
            const bool told = tell(ended);
            const bool woken = collect(told ? Clock::now() : std::min(end, next_arrival()));
            if (told) return;
            if (woken || Clock::now() >= end) break;
        }
        tell(ended);
    }

    void wake() override { device_->wake(); }

   private:
    struct Coming {
        Clock::time_point arrives;
        Read* read;
    };

    Clock::time_point next_arrival() const {
        Clock::time_point next = Clock::time_point::max();
        for (const Coming& held : held_) next = std::min(next, held.arrives);
        return next;
    }

    // Waits until the device has read something, or until then; whether somebody woke it.
    bool collect(Clock::time_point until) {
        int64_t microseconds = -1;
        if (until != Clock::time_point::max()) {
            const auto left = std::chrono::duration_cast<std::chrono::microseconds>(until - Clock::now()).count();
            microseconds = left < 0 ? 0 : left + 1;  // no earlier
        }
        read_.clear();
        device_->wait(read_, microseconds);
        for (const Read* read : read_) {
            const auto same = [&](const Coming& coming) { return coming.read == read; };
            const auto place = std::find_if(coming_.begin(), coming_.end(), same);
            held_.push_back(*place);
            coming_.erase(place);
        }
        return read_.empty() && Clock::now() < until;
    }

    // Adds what has been read and has arrived; whether there was any.
    bool tell(std::vector<Read*>& ended) {
        const Clock::time_point now = Clock::now();
        const auto stays = [&](const Coming& held) { return held.arrives > now; };
        const auto first = std::stable_partition(held_.begin(), held_.end(), stays);
        const bool any = first != held_.end();
        for (auto arrived = first; arrived != held_.end(); ++arrived) ended.push_back(arrived->read);
        held_.erase(first, held_.end());
        return any;
    }

    const std::unique_ptr<Device> device_;
    const std::shared_ptr<Pace> pace_;
    std::vector<Coming> coming_, held_;  // being read; read, and not arrived
    std::vector<Read*> read_;
};

std::mutex imitated_lock;
std::shared_ptr<Pace> imitated;

}  // namespace

Clock::time_point Pace::arrival(size_t bytes) {
    const std::lock_guard<std::mutex> held(lock_);
    const std::chrono::duration<double> takes(static_cast<double>(bytes) / rate_);
    free_at_ = std::max(free_at_, Clock::now()) + std::chrono::duration_cast<Clock::duration>(takes);
    return free_at_;
}

std::unique_ptr<Device> or_threads(std::unique_ptr<Device> device, unsigned threads) {
    return std::make_unique<OrThreads>(std::move(device), threads);
}

std::unique_ptr<Device> paced(std::unique_ptr<Device> device, std::shared_ptr<Pace> pace) {
    return std::make_unique<Paced>(std::move(device), std::move(pace));
}

void imitate_storage(double bytes_per_second) {
    const std::lock_guard<std::mutex> held(imitated_lock);
    imitated = bytes_per_second > 0 ? std::make_shared<Pace>(bytes_per_second) : nullptr;
}

std::unique_ptr<Device> open_device(bool ring, unsigned reads, bool any_thread) {
    std::unique_ptr<Device> device = ring ? open_ring(reads, any_thread) : nullptr;
    device = device ? or_threads(std::move(device), reads) : open_threads(reads);
    const std::lock_guard<std::mutex> held(imitated_lock);
    return imitated ? paced(std::move(device), imitated) : std::move(device);
}

}  // namespace weightpager

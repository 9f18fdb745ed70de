#include <sys/uio.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>

#include "device.hpp"

namespace weightpager {
namespace {

// Outlives the device for threads that hang in a read.
struct Shared {
    std::mutex lock;
    std::condition_variable work, news;
    std::deque<Read*> begun;
    std::vector<Read*> ended;
    bool woken = false, closed = false;
};

void serve(const std::shared_ptr<Shared>& shared) {
    std::unique_lock<std::mutex> held(shared->lock);
    for (;;) {
        shared->work.wait(held, [&] { return shared->closed || !shared->begun.empty(); });
        if (shared->closed) return;
        Read* read = shared->begun.front();
        shared->begun.pop_front();
        held.unlock();
        const ssize_t count = preadv(read->file, read->views.data(), static_cast<int>(read->views.size()),
                                     static_cast<off_t>(read->offset + static_cast<int64_t>(read->done)));
        const int64_t result = count < 0 ? -errno : count;
        held.lock();
        if (shared->closed) return;  // nobody has the read any more
        read->result = result;
        shared->ended.push_back(read);
        shared->news.notify_one();
    }
}

class Threads : public Device {
   public:
    explicit Threads(unsigned threads) : shared_(std::make_shared<Shared>()), most_(threads) { start(); }

    ~Threads() override {
        const std::lock_guard<std::mutex> held(shared_->lock);
        shared_->closed = true;
        shared_->work.notify_all();
    }

    const char* name() const override { return "threads"; }

    void begin(Read& read) override {
        if (threads_ == 0) start();
        const std::lock_guard<std::mutex> held(shared_->lock);
        if (threads_ == 0) {
            read.result = kNoThread;
            shared_->ended.push_back(&read);
            return;
        }
        shared_->begun.push_back(&read);
        shared_->work.notify_one();
    }

    void wait(std::vector<Read*>& ended, int64_t microseconds) override {
        std::unique_lock<std::mutex> held(shared_->lock);
        const auto news = [&] { return shared_->woken || !shared_->ended.empty(); };
        if (microseconds < 0)
            shared_->news.wait(held, news);
        else
            shared_->news.wait_for(held, std::chrono::microseconds(microseconds), news);
        shared_->woken = false;
        ended.insert(ended.end(), shared_->ended.begin(), shared_->ended.end());
        shared_->ended.clear();
    }

    void wake() override {
        const std::lock_guard<std::mutex> held(shared_->lock);
        shared_->woken = true;
        shared_->news.notify_one();
    }

   private:
    // With fewer threads than wanted, reads wait for each other. Without any they fail, until one can be started.
    void start() {
        try {
            for (; threads_ < most_; ++threads_) std::thread([shared = shared_] { serve(shared); }).detach();
        } catch (const std::system_error&) {  // the process may have no more
        }
    }

    std::shared_ptr<Shared> shared_;
    const unsigned most_;
    unsigned threads_ = 0;
};

}  // namespace

std::unique_ptr<Device> open_threads(unsigned threads) { return std::make_unique<Threads>(threads); }

}  // namespace weightpager

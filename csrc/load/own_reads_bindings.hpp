// What Python sees of reads that a thread makes itself.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <memory>
#include <string>

#include "own_reads.hpp"

namespace weightpager {

// For so long as reads end, those of others too, and until Ctrl-C.
class Waiting : public Patience {
   public:
    // `ended` says how often reads of others have ended.
    Waiting(double seconds, nanobind::handle ended) : seconds_(seconds), ended_(ended) {}

    void came() override { since_ = Clock::now(); }
    bool left() override;

   private:
    using Clock = std::chrono::steady_clock;

    const std::chrono::duration<double> seconds_;
    const nanobind::handle ended_;
    int64_t seen_ = -1;
    Clock::time_point since_ = Clock::now();
};

class OwnReadsBinding {
   public:
    OwnReadsBinding(unsigned reads, bool ring);

    bool close(double seconds);
    std::string device() const { return reads_->device(); }
    const std::shared_ptr<OwnReads>& shared() const { return reads_; }

   private:
    std::shared_ptr<OwnReads> reads_;
};

// How it failed, the storage's error, the page, and bytes that have been read.
nanobind::tuple told(const Outcome& outcome);

}  // namespace weightpager

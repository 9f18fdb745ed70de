#include "workspaces.hpp"

#include <algorithm>

namespace weightpager {
namespace {

constexpr int64_t kAlignment = 64;

}  // namespace

uint8_t* Workspaces::Loan::memory() const {
    uint8_t* memory = workspace_.memory.get();
    const auto address = reinterpret_cast<uintptr_t>(memory);
    return memory == nullptr ? nullptr : memory + (kAlignment - address % kAlignment) % kAlignment;
}

Workspaces::Loan Workspaces::borrow(const std::shared_ptr<Workspaces>& from, int64_t bytes) { return {from, from->take(bytes)}; }

int64_t Workspaces::bytes() const {
    const std::lock_guard<std::mutex> lock(lock_);
    return bytes_;
}

// The largest, so that few ever grow.
Workspaces::Workspace Workspaces::take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(lock_);
    if (free_.empty()) {
        // Giving back must find room for it.
        free_.reserve(static_cast<size_t>(workspaces_) + 1);
        free_.emplace_back();
        ++workspaces_;
    }
    const auto smaller = [](const Workspace& a, const Workspace& b) { return a.bytes < b.bytes; };
    Workspace& largest = *std::max_element(free_.begin(), free_.end(), smaller);
    if (largest.bytes < bytes) {
        bytes_ -= largest.bytes;
        largest = {};
        largest.memory.reset(new uint8_t[static_cast<size_t>(bytes + kAlignment)]);
        largest.bytes = bytes;
        bytes_ += bytes;
    }
    Workspace workspace = std::move(largest);
    std::swap(largest, free_.back());
    free_.pop_back();
    return workspace;
}

void Workspaces::give_back(Workspace workspace) noexcept {
    const std::lock_guard<std::mutex> lock(lock_);
    free_.push_back(std::move(workspace));
}

}  // namespace weightpager

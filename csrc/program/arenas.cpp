#include "arenas.hpp"

#include <algorithm>

namespace weightpager {
namespace {

constexpr int64_t kAlignment = 64;

}  // namespace

uint8_t* Arenas::Loan::memory() const {
    uint8_t* memory = arena_.memory.get();
    const auto address = reinterpret_cast<uintptr_t>(memory);
    return memory == nullptr ? nullptr : memory + (kAlignment - address % kAlignment) % kAlignment;
}

Arenas::Loan Arenas::borrow(const std::shared_ptr<Arenas>& from, int64_t bytes) { return {from, from->take(bytes)}; }

int64_t Arenas::bytes() const {
    const std::lock_guard<std::mutex> lock(lock_);
    return bytes_;
}

// The largest, so that few ever grow.
Arenas::Arena Arenas::take(int64_t bytes) {
    const std::lock_guard<std::mutex> lock(lock_);
    if (free_.empty()) {
        // Giving back must find room for it.
        free_.reserve(static_cast<size_t>(arenas_) + 1);
        free_.emplace_back();
        ++arenas_;
    }
    const auto smaller = [](const Arena& a, const Arena& b) { return a.bytes < b.bytes; };
    Arena& largest = *std::max_element(free_.begin(), free_.end(), smaller);
    if (largest.bytes < bytes) {
        bytes_ -= largest.bytes;
        largest = {};
        largest.memory.reset(new uint8_t[static_cast<size_t>(bytes + kAlignment)]);
        largest.bytes = bytes;
        bytes_ += bytes;
    }
    Arena arena = std::move(largest);
    std::swap(largest, free_.back());
    free_.pop_back();
    return arena;
}

void Arenas::give_back(Arena arena) noexcept {
    const std::lock_guard<std::mutex> lock(lock_);
    free_.push_back(std::move(arena));
}

}  // namespace weightpager

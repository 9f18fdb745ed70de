// Memory of activations that programs have in common.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace weightpager {

// A call borrows an arena, and the next call of whatever program gets it again: there are as many as there have been calls
// at once. Any thread may borrow.
class Arenas {
    struct Arena {
        std::unique_ptr<uint8_t[]> memory;
        int64_t bytes = 0;
    };

   public:
    // An arena that is given back when this goes.
    class Loan {
       public:
        Loan(std::shared_ptr<Arenas> of, Arena arena) : of_(std::move(of)), arena_(std::move(arena)) {}
        Loan(Loan&&) = default;
        Loan& operator=(Loan&&) = delete;
        ~Loan() {
            if (of_ != nullptr) of_->give_back(std::move(arena_));
        }

        uint8_t* memory() const;  // on a boundary of 64 bytes

       private:
        std::shared_ptr<Arenas> of_;
        Arena arena_;
    };

    // One of at least so many bytes.
    static Loan borrow(const std::shared_ptr<Arenas>& from, int64_t bytes);

    // Of all arenas, whether they are lent or not.
    int64_t bytes() const;

   private:
    Arena take(int64_t bytes);
    void give_back(Arena arena) noexcept;

    mutable std::mutex lock_;
    std::vector<Arena> free_;
    int64_t arenas_ = 0, bytes_ = 0;
};

}  // namespace weightpager

// Memory of activations that programs have in common.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace weightpager {

// A call borrows a workspace, and the next call of whatever program gets it again: there are as many as there have been calls
// at once. Any thread may borrow.
class Workspaces {
    struct Workspace {
        std::unique_ptr<uint8_t[]> memory;
        int64_t bytes = 0;
    };

   public:
    // A workspace that is given back when this goes.
    class Loan {
       public:
        Loan(std::shared_ptr<Workspaces> of, Workspace workspace) : of_(std::move(of)), workspace_(std::move(workspace)) {}
        Loan(Loan&&) = default;
        Loan& operator=(Loan&&) = delete;
        ~Loan() {
            if (of_ != nullptr) of_->give_back(std::move(workspace_));
        }

        uint8_t* memory() const;  // on a boundary of 64 bytes

       private:
        std::shared_ptr<Workspaces> of_;
        Workspace workspace_;
    };

    // One of at least so many bytes.
    static Loan borrow(const std::shared_ptr<Workspaces>& from, int64_t bytes);

    // Of all workspaces, whether they are lent or not.
    int64_t bytes() const;

   private:
    Workspace take(int64_t bytes);
    void give_back(Workspace workspace) noexcept;

    mutable std::mutex lock_;
    std::vector<Workspace> free_;
    int64_t workspaces_ = 0, bytes_ = 0;
};

}  // namespace weightpager

// Walks through views of one shape, in runs along their last axes.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "divide.hpp"
#include "parallel.hpp"
#include "program/value.hpp"

namespace weightpager {

// How many elements of a dense view lie before, along and behind some of its axes that follow each other.
struct AxisExtents {
    int64_t before = 1, along = 1, behind = 1;

    AxisExtents(const View& view, int64_t axis) : AxisExtents(view, axis, axis) {}

    AxisExtents(const View& view, int64_t first, int64_t last) {
        for (int64_t i = 0; i < view.rank(); ++i)
            (i < first ? before : i <= last ? along : behind) *= view.sizes[static_cast<size_t>(i)];
    }
};

// Axes of `Views` views that follow each other evenly in all of them are one axis here. Needs no memory of the heap.
template <int Views>
class Loop {
   public:
    using Each = std::array<int64_t, Views>;

    // Views broadcast to the sizes, as numpy's do; null stands for one number, which is the same everywhere.
    Loop(const Sizes& sizes, const std::array<const View*, Views>& views) {
        const int64_t rank = static_cast<int64_t>(sizes.size());
        for (int64_t axis = 0; axis < rank; ++axis) {
            Each strides;
            for (size_t v = 0; v < Views; ++v) strides[v] = stride(views[v], axis - rank);
            add(sizes[static_cast<size_t>(axis)], strides);
        }
        if (rank_ == 0) add(1, Each{}, true);
    }

    // Calls `body(at, steps, count)`: offsets of a run's first elements, what lies between them, and their number.
    template <class Body>
    void run(int threads, const Body& body) const {
        const int64_t inner = sizes_[rank_ - 1], pieces = divide_up(inner, kPiece);
        int64_t outer = 1;
        for (int axis = 0; axis + 1 < rank_; ++axis) outer *= sizes_[axis];
        const int64_t together = std::max<int64_t>(1, kPiece / std::max<int64_t>(1, inner)), runs = outer * pieces;
        parallel_for(divide_up(runs, together), threads, [&](int64_t group) {
            for (int64_t i = group * together; i < std::min(runs, (group + 1) * together); ++i) {
                const int64_t first = i % pieces * kPiece;
                Each at;
                for (size_t v = 0; v < Views; ++v) at[v] = first * steps()[v];
                int64_t left = i / pieces;
                for (int axis = rank_ - 2; axis >= 0; --axis) {
                    for (size_t v = 0; v < Views; ++v) at[v] += left % sizes_[axis] * strides_[axis][v];
                    left /= sizes_[axis];
                }
                body(at, steps(), std::min(kPiece, inner - first));
            }
        });
    }

   private:
    static constexpr int64_t kPiece = 1 << 13;  // elements that a thread takes at once

    static int64_t stride(const View* view, int64_t from_end) {
        if (view == nullptr || view->rank() + from_end < 0) return 0;
        const size_t axis = static_cast<size_t>(view->rank() + from_end);
        return view->sizes[axis] == 1 ? 0 : view->strides[axis];
    }

    const Each& steps() const { return strides_[rank_ - 1]; }

    void add(int64_t size, const Each& strides, bool even_so = false) {
        if (size == 1 && !even_so) return;
        bool evenly = rank_ > 0;
        for (size_t v = 0; v < Views; ++v) evenly = evenly && strides_[std::max(0, rank_ - 1)][v] == size * strides[v];
        if (evenly) {
            sizes_[rank_ - 1] *= size;
            strides_[rank_ - 1] = strides;
        } else {
            sizes_[rank_] = size;
            strides_[rank_++] = strides;
        }
    }

    int rank_ = 0;
    int64_t sizes_[kMostAxes + 1] = {};
    Each strides_[kMostAxes + 1] = {};
};

}  // namespace weightpager

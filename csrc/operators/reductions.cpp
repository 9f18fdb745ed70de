// Sums, means, running sums and greatest elements along axes. None of them depends on the number of threads.
#include <algorithm>

#include "divide.hpp"
#include "families.hpp"
#include "loop.hpp"

namespace weightpager {
namespace {

constexpr int64_t kPart = 256;  // neighbours that are summed up side by side

// Sums over what lies along the remembered axes.
template <class T, class Wide, bool Mean>
void run_sum(const Step& step, const Running& running) {
    const T* x = running.data<T>(step.in[0]);
    auto* out = running.data<std::conditional_t<std::is_same_v<T, float>, float, int64_t>>(step.out[0]);
    const AxisExtents& extents = step.recall<AxisExtents>();
    const int64_t along = extents.along, behind = extents.behind;
    const int64_t parts = divide_up(behind, kPart);
    parallel_for(extents.before * parts, running.worth(extents.before * along * behind), [&](int64_t i) {
        const int64_t first = i % parts * kPart, count = std::min(kPart, behind - first);
        const T* from = x + i / parts * along * behind + first;
        Wide sums[kPart] = {};
        for (int64_t row = 0; row < along; ++row)
            for (int64_t j = 0; j < count; ++j) sums[j] += static_cast<Wide>(from[row * behind + j]);
        for (int64_t j = 0; j < count; ++j)
            out[i / parts * behind + first + j] =
                static_cast<std::remove_pointer_t<decltype(out)>>(Mean ? sums[j] / static_cast<Wide>(along) : sums[j]);
    });
}

// Axes that follow each other are summed over in one go; else the view is turned so that they are the last ones.
template <bool Mean>
void infer_sum(Inference& inference) {
    const View x = inference.in(0);
    inference.expect(!Mean || x.type == Type::float32, "operand 0: expected float32, found ", x);
    Sizes axes = inference.sizes("axes");
    std::sort(axes.begin(), axes.end());
    inference.expect(!axes.empty() && std::adjacent_find(axes.begin(), axes.end()) == axes.end() && axes.front() >= 0 &&
                         axes.back() < x.rank(),
                     "attribute axes: expected axes of ", x.sizes, ", each once, found ", axes);
    const bool keep = inference.flag("keep");
    const auto is_summed = [&](int64_t axis) { return std::binary_search(axes.begin(), axes.end(), axis); };
    Sizes sizes;
    for (int64_t i = 0; i < x.rank(); ++i)
        if (keep || !is_summed(i)) sizes.push_back(is_summed(i) ? 1 : x.sizes[static_cast<size_t>(i)]);
    if (axes.back() - axes.front() + 1 != static_cast<int64_t>(axes.size())) {
        View& turned = inference.change(0);
        turned.sizes.clear();
        turned.strides.clear();
        for (bool summed : {false, true})
            for (int64_t i = 0; i < x.rank(); ++i)
                if (is_summed(i) == summed) {
                    turned.sizes.push_back(x.sizes[static_cast<size_t>(i)]);
                    turned.strides.push_back(x.strides[static_cast<size_t>(i)]);
                }
        for (size_t i = 0; i < axes.size(); ++i) axes[i] = x.rank() - static_cast<int64_t>(axes.size() - i);
    }
    const View& from = inference.dense(0);
    const AxisExtents extents(from, axes.front(), axes.back());
    inference.remember(extents);
    inference.expect(!Mean || extents.along > 0, "operand 0: expected elements to take the mean of, found ", x);
    inference.give(x.type == Type::float32 ? Type::float32 : Type::int64, sizes);
    inference.run_by(x.type == Type::float32 ? &run_sum<float, double, Mean>
                     : x.type == Type::int64 ? &run_sum<int64_t, uint64_t, false>
                                             : &run_sum<uint8_t, int64_t, false>);
}

template <class From, class To>
void run_cumsum(const Step& step, const Running& running) {
    const From* x = running.data<From>(step.in[0]);
    To* out = running.data<To>(step.out[0]);
    const auto& extents = step.recall<AxisExtents>();
    for (int64_t i = 0; i < extents.before * extents.behind; ++i) {
        int64_t at = i / extents.behind * extents.along * extents.behind + i % extents.behind;
        To sum{};
        for (int64_t j = 0; j < extents.along; ++j, at += extents.behind) out[at] = sum += static_cast<To>(x[at]);
    }
}

void infer_cumsum(Inference& inference) {
    const int64_t axis = inference.axis("axis", inference.in(0).rank());
    const View x = inference.dense(0);
    inference.remember(AxisExtents(x, axis));
    inference.give(x.type == Type::float32 ? Type::float32 : Type::int64, x.sizes);
    // In unsigned numbers, whose overflow is defined.
    inference.run_by(x.type == Type::float32 ? &run_cumsum<float, float>
                     : x.type == Type::int64 ? &run_cumsum<uint64_t, uint64_t>
                                             : &run_cumsum<uint8_t, uint64_t>);
}

template <class T>
void run_argmax(const Step& step, const Running& running) {
    const T* x = running.data<T>(step.in[0]);
    auto* out = running.data<int64_t>(step.out[0]);
    const auto& extents = step.recall<AxisExtents>();
    parallel_for(extents.before * extents.behind, running.worth(extents.before * extents.behind * extents.along), [&](int64_t i) {
        const T* from = x + i / extents.behind * extents.along * extents.behind + i % extents.behind;
        int64_t best = 0;
        for (int64_t j = 1; j < extents.along; ++j) {
            const T value = from[j * extents.behind], now = from[best * extents.behind];
            if (value > now || (value != value && now == now)) best = j;  // the first NaN, as numpy has it
        }
        out[i] = best;
    });
}

void infer_argmax(Inference& inference) {
    const int64_t axis = inference.axis("axis", inference.in(0).rank());
    const View x = inference.dense(0);
    inference.expect(x.sizes[static_cast<size_t>(axis)] > 0, "operand 0: expected elements along the axis, found ", x);
    inference.remember(AxisExtents(x, axis));
    Sizes sizes = x.sizes;
    sizes.erase(sizes.begin() + axis);
    inference.give(Type::int64, sizes);
    inference.run_by(x.type == Type::float32 ? &run_argmax<float>
                     : x.type == Type::int64 ? &run_argmax<int64_t>
                                             : &run_argmax<uint8_t>);
}

}  // namespace

std::vector<Operator> reduction_operators() {
    return {
        {"mean", 1, infer_sum<true>},
        {"sum", 1, infer_sum<false>},
        {"cumsum", 1, infer_cumsum},
        {"argmax", 1, infer_argmax},
    };
}

}  // namespace weightpager

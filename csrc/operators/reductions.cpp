// Sums, means, running sums and greatest elements along axes. None of them depends on the number of threads.
#include <algorithm>

#include "families.hpp"
#include "loop.hpp"

namespace weightpager {
namespace {

// How many elements lie before, along and behind an axis of a dense view.
struct Around {
    int64_t before = 1, along = 1, behind = 1;

    Around(const View& view, int64_t axis) {
        for (int64_t i = 0; i < view.rank(); ++i)
            (i < axis ? before : i == axis ? along : behind) *= view.sizes[static_cast<size_t>(i)];
    }
};

constexpr int64_t kPart = 256;  // neighbours that are summed up side by side

// The operand's last axes, `numbers[0]` of them elements, are those that are summed over, or its first, and the rest stays.
template <class T, class Wide, bool Mean>
void run_sum(const Step& step, const Running& running) {
    const T* x = running.data<T>(step.in[0]);
    auto* out = running.data<std::conditional_t<std::is_same_v<T, float>, float, int64_t>>(step.out[0]);
    const int64_t along = step.numbers[0], behind = step.numbers[1], before = step.numbers[2];
    const int64_t parts = (behind + kPart - 1) / kPart;
    parallel_for(before * parts, running.worth(before * along * behind), [&](int64_t i) {
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
    inference.expect(!Mean || x.type == Type::float32, "operand 0: expected float32, found " + x.text());
    Sizes axes = inference.sizes("axes");
    std::sort(axes.begin(), axes.end());
    inference.expect(!axes.empty() && std::adjacent_find(axes.begin(), axes.end()) == axes.end() && axes.front() >= 0 &&
                         axes.back() < x.rank(),
                     "attribute axes: expected axes of " + text_of(x.sizes) + ", each once, found " + text_of(axes));
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
    int64_t before = 1, along = 1, behind = 1;
    for (int64_t i = 0; i < from.rank(); ++i)
        (i < axes.front() ? before : i <= axes.back() ? along : behind) *= from.sizes[static_cast<size_t>(i)];
    for (int64_t number : {along, behind, before}) inference.remember(number);
    inference.expect(!Mean || along > 0, "operand 0: expected elements to take the mean of, found " + x.text());
    inference.give(x.type == Type::float32 ? Type::float32 : Type::int64, sizes);
    inference.run_by(x.type == Type::float32 ? &run_sum<float, double, Mean>
                     : x.type == Type::int64 ? &run_sum<int64_t, uint64_t, false>
                                             : &run_sum<uint8_t, int64_t, false>);
}

template <class From, class To>
void run_cumsum(const Step& step, const Running& running) {
    const From* x = running.data<From>(step.in[0]);
    To* out = running.data<To>(step.out[0]);
    const Around around(step.in[0], step.numbers[0]);
    for (int64_t i = 0; i < around.before * around.behind; ++i) {
        int64_t at = i / around.behind * around.along * around.behind + i % around.behind;
        To sum{};
        for (int64_t j = 0; j < around.along; ++j, at += around.behind) out[at] = sum += static_cast<To>(x[at]);
    }
}

void infer_cumsum(Inference& inference) {
    const int64_t axis = inference.axis("axis", inference.in(0).rank());
    const View x = inference.dense(0);
    inference.remember(axis);
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
    const Around around(step.in[0], step.numbers[0]);
    parallel_for(around.before * around.behind, running.worth(around.before * around.behind * around.along), [&](int64_t i) {
        const T* from = x + i / around.behind * around.along * around.behind + i % around.behind;
        int64_t best = 0;
        for (int64_t j = 1; j < around.along; ++j) {
            const T value = from[j * around.behind], now = from[best * around.behind];
            if (value > now || (value != value && now == now)) best = j;  // the first NaN, as numpy has it
        }
        out[i] = best;
    });
}

void infer_argmax(Inference& inference) {
    const int64_t axis = inference.axis("axis", inference.in(0).rank());
    const View x = inference.dense(0);
    inference.expect(x.sizes[static_cast<size_t>(axis)] > 0, "operand 0: expected elements along the axis, found " + x.text());
    inference.remember(axis);
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

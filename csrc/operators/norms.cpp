// Norms over the last axis, alone and with the sum before them.
#include <algorithm>

#include "divide.hpp"
#include "families.hpp"
#include "parallel.hpp"

namespace weightpager {
namespace {

constexpr int64_t kRowsWorth = 1 << 13;  // elements that a thread takes at once

void expect_scale(Inference& inference, size_t i, int64_t columns) {
    if (!inference.has(i)) return;
    inference.expect_type(i, Type::float32);
    inference.expect(inference.dense(i).sizes == Sizes{columns}, "operand ", i, ": expected ", Sizes{columns}, ", found ",
                     inference.in(i).sizes);
}

template <bool Centred, bool Adds>
void run_norm(const Step& step, const Running& running) {
    const size_t weight = Adds ? 2 : 1;
    const auto at = [&](size_t i) -> const float* {
        return i < step.in.size() && step.in[i].number >= 0 ? running.data(step.in[i]) : nullptr;
    };
    Norm norm{};
    norm.x = at(0);
    norm.y = Adds ? at(1) : nullptr;
    norm.sum = Adds ? running.data(step.out[0]) : nullptr;
    norm.out = running.data(step.out.back());
    norm.weight = at(weight);
    norm.bias = Centred ? at(weight + 1) : nullptr;
    norm.columns = step.in[0].last();
    norm.epsilon = number_of<float>(step, "epsilon");
    norm.offset = Centred ? 0.0f : number_of<float>(step, "offset");
    norm.centred = Centred;
    const int64_t rows = step.in[0].rows(), share = std::max<int64_t>(1, kRowsWorth / std::max<int64_t>(1, norm.columns));
    parallel_for(divide_up(rows, share), running.worth(3 * rows * norm.columns), [&](int64_t i) {
        running.vectors.norm(norm, i * share, std::min(rows, (i + 1) * share));
    });
}

template <bool Centred, bool Adds>
void infer_norm(Inference& inference) {
    inference.expect_type(0, Type::float32);
    const Sizes sizes = inference.dense(0).sizes;
    inference.expect(!sizes.empty(), "operand 0: expected an axis to norm over, found none");
    inference.number("epsilon");
    if (Adds) {
        inference.expect_type(1, Type::float32);
        inference.expect(inference.dense(1).sizes == sizes, "operand 1: expected ", sizes, ", found ",
                         inference.in(1).sizes);
        inference.give(Type::float32, sizes);
    }
    expect_scale(inference, Adds ? 2 : 1, sizes.back());
    if (Centred)
        expect_scale(inference, Adds ? 3 : 2, sizes.back());
    else
        inference.number("offset");
    inference.give(Type::float32, sizes);
    inference.run_by(&run_norm<Centred, Adds>);
}

void run_softmax(const Step& step, const Running& running) {
    const int64_t columns = step.in[0].last(), rows = step.in[0].rows();
    const int64_t share = std::max<int64_t>(1, kRowsWorth / std::max<int64_t>(1, columns));
    const float* x = running.data(step.in[0]);
    float* y = running.data(step.out[0]);
    parallel_for(divide_up(rows, share), running.worth(8 * rows * columns), [&](int64_t i) {
        running.vectors.softmax(x, y, columns, i * share, std::min(rows, (i + 1) * share));
    });
}

void infer_softmax(Inference& inference) {
    inference.expect_type(0, Type::float32);
    const int64_t rank = inference.in(0).rank(), axis = inference.axis("axis", rank);
    // Another axis than the last becomes it, and its values go back where they were.
    View& x = inference.change(0);
    std::swap(x.sizes[static_cast<size_t>(axis)], x.sizes.back());
    std::swap(x.strides[static_cast<size_t>(axis)], x.strides.back());
    View out = inference.own(Type::float32, inference.dense(0).sizes);
    std::swap(out.sizes[static_cast<size_t>(axis)], out.sizes.back());
    std::swap(out.strides[static_cast<size_t>(axis)], out.strides.back());
    inference.give_view(out);
    inference.run_by(&run_softmax);
}

}  // namespace

std::vector<Operator> norm_operators() {
    return {
        {"layer_norm", 1, infer_norm<true, false>},
        {"rms_norm", 1, infer_norm<false, false>},
        {"add_layer_norm", 2, infer_norm<true, true>},
        {"add_rms_norm", 2, infer_norm<false, true>},
        {"softmax", 1, infer_softmax},
    };
}

}  // namespace weightpager

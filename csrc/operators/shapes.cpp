// Operators that move elements or look at them otherwise. Most give views and cost nothing.
#include <algorithm>
#include <cstring>

#include "families.hpp"
#include "loop.hpp"

namespace weightpager {
namespace {

// Calls `with` with an unsigned number of as many bytes as an element has: moving needs to know no more.
template <class With>
void by_size(Type type, const With& with) {
    switch (bytes_of(type)) {
        case 8: return with(uint64_t{});
        case 4: return with(uint32_t{});
        default: return with(uint8_t{});
    }
}

// A view's elements to those of another, which begin at `y`; it has as many axes of the same sizes.
template <class T>
void move_to(const View& from, const View& to, T* y, const Running& running) {
    const T* x = running.data<T>(from);
    Loop<2>(from.sizes, {&to, &from}).run(running.worth(from.elements()), [&](const auto& at, const auto& by, int64_t count) {
        if (by[0] == 1 && by[1] == 1) {
            std::memcpy(y + at[0], x + at[1], static_cast<size_t>(count) * sizeof(T));
            return;
        }
        for (int64_t i = 0; i < count; ++i) y[at[0] + i * by[0]] = x[at[1] + i * by[1]];
    });
}

void move_elements(const View& from, const View& to, const Running& running) {
    by_size(from.type, [&](auto zero) { move_to(from, to, running.data<decltype(zero)>(to), running); });
}

// Strides for other sizes of the same elements without a copy; empty where there are none.
Sizes strides_for(const View& x, const Sizes& sizes) {
    Sizes strides(sizes.size(), 1);
    size_t from = 0, to = 0;
    while (from < x.sizes.size() || to < sizes.size()) {
        // The fewest axes of both that hold equally many elements.
        size_t end_from = from, end_to = to;
        int64_t ours = 1, theirs = 1;
        do {
            if (end_from < x.sizes.size() && (ours <= theirs || end_to == sizes.size()))
                ours *= x.sizes[end_from++];
            else
                theirs *= sizes[end_to++];
        } while (ours != theirs || (end_from == from && end_to == to));
        // Which must follow each other evenly in memory. A stride of 0 is one like others: of elements that are repeated.
        bool any = false;
        int64_t stride = 0, span = 1;
        for (size_t i = end_from; i-- > from;) {
            if (x.sizes[i] == 1) continue;
            if (!any)
                stride = x.strides[i];
            else if (x.strides[i] != stride * span)
                return {};
            any = true;
            span *= x.sizes[i];
        }
        for (size_t i = end_to; i-- > to;) {
            strides[i] = stride;
            stride *= sizes[i];
        }
        from = end_from;
        to = end_to;
    }
    return strides;
}

void infer_reshape(Inference& inference) {
    Sizes sizes = inference.sizes("shape");
    const View& x = inference.in(0);
    int64_t known = 1, unknown = -1;
    for (size_t i = 0; i < sizes.size(); ++i) {
        inference.expect(sizes[i] >= -1 && sizes[i] <= kLargestAxis && (sizes[i] >= 0 || unknown < 0),
                         "attribute shape: expected sizes and at most one -1, found ", sizes);
        if (sizes[i] < 0) {
            unknown = static_cast<int64_t>(i);
            continue;
        }
        inference.expect(sizes[i] == 0 || known <= kMostElements / sizes[i],
                         "attribute shape: expected fewer elements, found ", sizes);
        known *= sizes[i];
    }
    const int64_t elements = x.elements();
    if (unknown >= 0 && known > 0 && elements % known == 0) {
        sizes[static_cast<size_t>(unknown)] = elements / known;
        known = elements;
        unknown = -1;
    }
    inference.expect(unknown < 0 && known == elements, "attribute shape: expected a shape of ", elements, " elements for ",
                     x.sizes, ", found ", sizes);
    inference.elements_of(sizes);
    View view = x;
    const Sizes strides = elements == 0 ? Sizes{} : strides_for(x, sizes);
    if (elements != 0 && strides.size() == sizes.size()) {
        view.strides = strides;
    } else {
        view = inference.dense(0);
        view.strides = dense_strides(sizes);
    }
    view.sizes = sizes;
    inference.give_view(view);
}

void infer_permute(Inference& inference) {
    const View& x = inference.in(0);
    const Sizes axes = inference.sizes("axes");
    Sizes sorted = axes;
    std::sort(sorted.begin(), sorted.end());
    bool each = static_cast<int64_t>(axes.size()) == x.rank();
    for (size_t i = 0; i < sorted.size(); ++i) each = each && sorted[i] == static_cast<int64_t>(i);
    inference.expect(each, "attribute axes: expected every axis of ", x.sizes, " once, found ", axes);
    View view = x;
    for (size_t i = 0; i < axes.size(); ++i) {
        view.sizes[i] = x.sizes[static_cast<size_t>(axes[i])];
        view.strides[i] = x.strides[static_cast<size_t>(axes[i])];
    }
    inference.give_view(view);
}

// As Python's slices count: from the end where negative, and never beyond it.
int64_t clamped(int64_t bound, int64_t size) {
    if (bound < 0) bound += size;
    return std::min(std::max<int64_t>(bound, 0), size);
}

void infer_slice(Inference& inference) {
    View view = inference.in(0);
    const size_t axis = static_cast<size_t>(inference.axis("axis", view.rank()));
    const int64_t size = view.sizes[axis], step = inference.integer("step");
    inference.expect(step >= 1, "attribute step: expected at least 1, found ", step);
    const int64_t end = inference.bound("end"), first = clamped(inference.bound("start"), size);
    const int64_t last = end == kOpen ? size : clamped(end, size);
    const int64_t stride = view.strides[axis];
    view.sizes[axis] = first < last ? (last - first - 1) / step + 1 : 0;
    if (view.sizes[axis] > 0) view.offset += first * stride;
    view.strides[axis] = view.sizes[axis] > 1 ? stride * step : stride;
    inference.give_view(view);
}

void infer_expand(Inference& inference) {
    View view = inference.in(0);
    Sizes sizes = inference.sizes("shape"), strides(sizes.size(), 0);
    inference.expect(sizes.size() >= view.sizes.size(), "attribute shape: expected at least as many axes as ", view.sizes,
                     ", found ", sizes);
    const size_t added = sizes.size() - view.sizes.size();
    for (size_t i = 0; i < view.sizes.size(); ++i) {
        int64_t& size = sizes[added + i];
        if (size == -1) size = view.sizes[i];
        inference.expect(size == view.sizes[i] || view.sizes[i] == 1, "attribute shape: expected what ", view.sizes,
                         " broadcasts to, found ", sizes);
        strides[added + i] = size == view.sizes[i] ? view.strides[i] : 0;
    }
    inference.elements_of(sizes);
    view.sizes = sizes;
    view.strides = strides;
    inference.give_view(view);
}

void run_concat(const Step& step, const Running& running) {
    View to = step.out[0];
    const auto axis = static_cast<size_t>(step.recall<int64_t>());
    for (const View& from : step.in) {
        to.sizes[axis] = from.sizes[axis];
        move_elements(from, to, running);
        to.offset += from.sizes[axis] * to.strides[axis];
    }
}

void infer_concat(Inference& inference) {
    inference.expect(inference.operands() > 0, "expected operands, found none");
    Sizes sizes = inference.in(0).sizes;
    const int64_t axis = inference.axis("axis", inference.in(0).rank());
    for (size_t i = 1; i < inference.operands(); ++i) {
        inference.expect_type(i, inference.in(0).type);
        Sizes other = inference.in(i).sizes;
        const bool same_rank = other.size() == sizes.size();
        if (same_rank) {
            sizes[static_cast<size_t>(axis)] += other[static_cast<size_t>(axis)];
            other[static_cast<size_t>(axis)] = sizes[static_cast<size_t>(axis)];
        }
        inference.expect(same_rank && other == sizes, "operand ", i, ": expected sizes as of operand 0, ",
                         inference.in(0).sizes, ", but on axis ", axis, ", found ", inference.in(i).sizes);
    }
    inference.remember(axis);
    inference.give(inference.in(0).type, sizes);
    inference.run_by(&run_concat);
}

struct Range {
    int64_t start, step;
};

void run_arange(const Step& step, const Running& running) {
    auto* out = running.data<int64_t>(step.out[0]);
    const Range& range = step.recall<Range>();
    for (int64_t i = 0; i < step.out[0].elements(); ++i) out[i] = range.start + i * range.step;
}

void infer_arange(Inference& inference) {
    const int64_t start = inference.bound("start"), end = inference.bound("end"), step = inference.integer("step");
    inference.expect(step >= 1 && std::abs(start) <= kLargestAxis && std::abs(end) <= kLargestAxis,
                     "expected a step of at least 1 and bounds within 2^31");
    inference.remember(Range{start, step});
    inference.give(Type::int64, {end > start ? (end - start - 1) / step + 1 : 0});
    inference.run_by(&run_arange);
}

void run_full(const Step& step, const Running& running) {
    const View& out = step.out[0];
    if (out.type == Type::float32)
        std::fill_n(running.data(out), out.elements(), number_of<float>(step, "value"));
    else if (out.type == Type::int64)
        std::fill_n(running.data<int64_t>(out), out.elements(), number_of<int64_t>(step, "value"));
    else
        std::fill_n(running.data<uint8_t>(out), out.elements(), number_of<double>(step, "value") != 0 ? 1 : 0);
}

void infer_full(Inference& inference) {
    const std::string name = inference.word("dtype");
    for (Type type : {Type::float32, Type::int64, Type::boolean})
        if (name == text_of(type)) {
            inference.number_of_type("value", type);
            inference.give(type, inference.sizes("shape"));
            return inference.run_by(&run_full);
        }
    inference.fail("attribute dtype: expected float32, int64 or bool, found ", name);
}

}  // namespace

void copy_elements(const Step& step, const Running& running) { move_elements(step.in[0], step.out[0], running); }

void copy_out(const View& from, const Running& running, void* to) {
    View dense = from;
    dense.strides = dense_strides(from.sizes);
    by_size(from.type, [&](auto zero) { move_to(from, dense, static_cast<decltype(zero)*>(to), running); });
}

std::vector<Operator> shape_operators() {
    return {
        {"reshape", 1, infer_reshape}, {"permute", 1, infer_permute}, {"slice", 1, infer_slice},
        {"expand", 1, infer_expand},   {"concat", 1, infer_concat},   {"arange", 1, infer_arange},
        {"full", 1, infer_full},
    };
}

}  // namespace weightpager

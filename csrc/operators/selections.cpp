// Elements and slices that indices name.
#include <cstring>
#include <stdexcept>

#include "families.hpp"
#include "loop.hpp"
#include "parallel.hpp"

namespace weightpager {
namespace {

// From 0 to before `size`, where a negative index counts from the end.
int64_t checked_index(int64_t index, int64_t size) {
    if (index < -size || index >= size)
        throw std::out_of_range("expected indices from 0 to " + std::to_string(size - 1) + ", found " + std::to_string(index));
    return index < 0 ? index + size : index;
}

void run_take(const Step& step, const Running& running) {
    const int64_t size = bytes_of(step.in[0].type), count = step.in[1].elements();
    const auto* x = running.data<uint8_t>(step.in[0]);
    const auto* ids = running.data<int64_t>(step.in[1]);
    auto* out = running.data<uint8_t>(step.out[0]);
    const auto& extents = step.recall<AxisExtents>();
    const int64_t bytes = extents.behind * size;
    for (int64_t i = 0; i < extents.before; ++i)
        for (int64_t j = 0; j < count; ++j) {
            const int64_t from = i * extents.along + checked_index(ids[j], extents.along);
            std::memcpy(out + (i * count + j) * bytes, x + from * bytes, static_cast<size_t>(bytes));
        }
}

void infer_take(Inference& inference) {
    inference.expect_type(1, Type::int64);
    const int64_t axis = inference.axis("axis", inference.in(0).rank());
    const View x = inference.dense(0), ids = inference.dense(1);
    Sizes sizes(x.sizes.begin(), x.sizes.begin() + axis);
    sizes.insert(sizes.end(), ids.sizes.begin(), ids.sizes.end());
    sizes.insert(sizes.end(), x.sizes.begin() + axis + 1, x.sizes.end());
    inference.remember(AxisExtents(x, axis));
    inference.give(x.type, sizes);
    inference.run_by(&run_take);
}

// The axis of operand 0 that is gathered along.
struct GatherAxis {
    int64_t size, stride;
};

// Along the axis each element has an index of its own; to `Loop`, operand 0 has one element there.
template <class T>
void gather(const Step& step, const Running& running) {
    const T* x = running.data<T>(step.in[0]);
    const auto* index = running.data<int64_t>(step.in[1]);
    T* out = running.data<T>(step.out[0]);
    const int64_t along = step.recall<GatherAxis>().size, stride = step.recall<GatherAxis>().stride;
    Loop<3>(step.out[0].sizes, {&step.out[0], &step.in[0], &step.in[1]})
        .run(1, [&](const auto& at, const auto& by, int64_t count) {
            for (int64_t i = 0; i < count; ++i)
                out[at[0] + i * by[0]] = x[at[1] + i * by[1] + checked_index(index[at[2] + i * by[2]], along) * stride];
        });
}

void run_gather(const Step& step, const Running& running) {
    const int64_t bytes = bytes_of(step.in[0].type);
    bytes == 8 ? gather<uint64_t>(step, running) : bytes == 4 ? gather<uint32_t>(step, running) : gather<uint8_t>(step, running);
}

void infer_gather(Inference& inference) {
    inference.expect_type(1, Type::int64);
    const View x = inference.in(0), index = inference.in(1);
    const auto axis = static_cast<size_t>(inference.axis("axis", x.rank()));
    bool right = x.rank() == index.rank();
    for (size_t i = 0; right && i < x.sizes.size(); ++i)
        right = i == axis || index.sizes[i] == x.sizes[i] || index.sizes[i] == 1;
    inference.expect(right, "operand 1: expected sizes as of operand 0, ", x.sizes, ", or 1, but on axis ", axis, ", found ",
                     index.sizes);
    inference.remember(GatherAxis{x.sizes[axis], x.strides[axis]});
    inference.change(0).sizes[axis] = 1;
    Sizes sizes = x.sizes;
    sizes[axis] = index.sizes[axis];
    inference.give(x.type, sizes);
    inference.run_by(&run_gather);
}

}  // namespace

std::vector<Operator> selection_operators() {
    return {{"take", 1, infer_take}, {"gather", 1, infer_gather}};
}

}  // namespace weightpager

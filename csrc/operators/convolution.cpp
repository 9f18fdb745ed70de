// A convolution as a product of patches: rows of them are gathered and multiplied, some at a time.
#include <algorithm>

#include "families.hpp"
#include "parallel.hpp"
#include "products.hpp"

namespace weightpager {
namespace {

constexpr int64_t kScratch = 1 << 20;  // bytes of patches that are gathered at once

struct Shape {
    int64_t channels, height, width;        // of an image
    int64_t outputs, kernel_height, kernel_width;
    int64_t out_height, out_width;
    int64_t stride[2], padding[2], groups;
    int64_t at_once;  // patches that are gathered before they are multiplied

    int64_t group_channels() const { return channels / groups; }
    int64_t patch() const { return group_channels() * kernel_height * kernel_width; }
    int64_t patches() const { return out_height * out_width; }
};

// One patch of a group's channels: [channels, kernel height, kernel width], zeros where it leaves the image.
void gather_patch(const Shape& s, const View& x, const float* image, int64_t group, int64_t patch, float* to) {
    const int64_t top = patch / s.out_width * s.stride[0] - s.padding[0];
    const int64_t left = patch % s.out_width * s.stride[1] - s.padding[1];
    for (int64_t c = 0; c < s.group_channels(); ++c)
        for (int64_t i = 0; i < s.kernel_height; ++i) {
            const int64_t row = top + i;
            const float* from = image + (group * s.group_channels() + c) * x.strides[1] + row * x.strides[2];
            for (int64_t j = 0; j < s.kernel_width; ++j) {
                const int64_t column = left + j;
                const bool inside = row >= 0 && row < s.height && column >= 0 && column < s.width;
                *to++ = inside ? from[column * x.strides[3]] : 0.0f;
            }
        }
}

void run_convolution(const Step& step, const Running& running) {
    const View &x = step.in[0], &weight = step.in[1];
    const Shape& s = step.recall<Shape>();
    if (s.outputs == 0) return;  // of any number of groups
    const Parameter& kernel = running.parameters[static_cast<size_t>(weight.number)];
    const float* bias = step.in[2].number >= 0 ? running.data(step.in[2]) : nullptr;
    float* patches = running.data(View{Type::float32, {}, {}, Memory::buffer, step.scratch.number, 0});
    float* out = running.data(step.out[0]);
    const int64_t rows = x.sizes[0] * s.patches(), outputs = s.outputs / s.groups;
    const int64_t weight_bytes = outputs * s.patch() * bytes_of(kernel.type);
    for (int64_t first = 0; first < rows; first += s.at_once) {
        const int64_t count = std::min(s.at_once, rows - first);
        for (int64_t group = 0; group < s.groups; ++group) {
            parallel_for(count, running.worth(count * s.patch()), [&](int64_t i) {
                const int64_t row = first + i;
                const float* image = running.data(x) + row / s.patches() * x.strides[0];
                gather_patch(s, x, image, group, row % s.patches(), patches + i * s.patch());
            });
            const Dense dense{patches, s.patch(), static_cast<const uint8_t*>(kernel.data) + group * weight_bytes,
                              kernel.type == Type::bfloat16, bias == nullptr ? nullptr : bias + group * outputs,
                              out + first * s.outputs + group * outputs, s.outputs, s.patch(), Unary::none};
            multiply_dense(dense, count, outputs, running);
        }
    }
}

int64_t outputs_along(Inference& inference, int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
    inference.expect(stride >= 1 && padding >= 0 && stride <= 4096 && padding <= 4096,
                     "expected strides from 1 and paddings from 0 to 4096");
    inference.expect(kernel >= 1 && size + 2 * padding >= kernel,
                     "operand 0: expected images no smaller than kernels, found ", inference.in(0).sizes);
    return (size + 2 * padding - kernel) / stride + 1;
}

void infer_convolution(Inference& inference) {
    inference.expect_type(0, Type::float32);
    const View& x = inference.in(0);
    const Parameter& weight = inference.weight(1);
    const Sizes stride = inference.sizes("stride"), padding = inference.sizes("padding"), &kernel = weight.sizes;
    const int64_t groups = inference.integer("groups");
    inference.expect(!weight.paged && !weight.elsewhere && (weight.type == Type::float32 || weight.type == Type::bfloat16) &&
                         kernel.size() == 4,
                     weight.name, ": expected a weight of four axes, found ", kernel);
    inference.expect(stride.size() == 2 && padding.size() == 2, "expected two strides and two paddings");
    inference.expect(x.rank() == 4 && groups >= 1 && groups <= kLargestAxis && kernel[0] % groups == 0 &&
                         x.sizes[1] == kernel[1] * groups,
                     "operand 0: expected [batch, channels, height, width] for ", weight.name, " ", kernel, " in ", groups,
                     " groups, found ", x.sizes);
    if (inference.has(2)) {
        inference.expect_type(2, Type::float32);
        inference.expect(inference.dense(2).sizes == Sizes{kernel[0]}, "operand 2: expected ", Sizes{kernel[0]});
    }
    const int64_t height = outputs_along(inference, x.sizes[2], kernel[2], stride[0], padding[0]);
    const int64_t width = outputs_along(inference, x.sizes[3], kernel[3], stride[1], padding[1]);
    const int64_t patch = inference.elements_of({kernel[1], kernel[2], kernel[3]});
    const int64_t rows = inference.elements_of({x.sizes[0], height, width});
    inference.want_products({rows, kernel[0], patch});
    const int64_t at_once = std::max<int64_t>(1, std::min(rows, kScratch / int64_t{sizeof(float)} / std::max<int64_t>(1, patch)));
    inference.remember(Shape{x.sizes[1], x.sizes[2], x.sizes[3], kernel[0], kernel[2], kernel[3], height, width,
                             {stride[0], stride[1]}, {padding[0], padding[1]}, groups, at_once});
    // Channels are written last, and looked at as if they came first: what follows usually wants them last.
    View out = inference.own(Type::float32, {x.sizes[0], height, width, kernel[0]});
    out.sizes = {x.sizes[0], kernel[0], height, width};
    out.strides = {height * width * kernel[0], 1, width * kernel[0], kernel[0]};
    inference.give_view(out);
    inference.want_scratch(at_once * patch * int64_t{sizeof(float)});
    inference.run_by(&run_convolution);
}

}  // namespace

std::vector<Operator> convolution_operators() { return {{"conv2d", 1, infer_convolution, true}}; }

}  // namespace weightpager

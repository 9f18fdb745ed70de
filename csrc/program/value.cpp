#include "value.hpp"

#include <stdexcept>

namespace weightpager {

std::string text_of(const Sizes& sizes) {
    std::string text = "[";
    for (size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
    return text + "]";
}

std::string text_of(Type type) {
    return type == Type::float32 ? "float32" : type == Type::int64 ? "int64" : type == Type::boolean ? "bool" : "bfloat16";
}

int64_t checked_elements(const Sizes& sizes) {
    if (sizes.size() > kMostAxes)
        throw std::invalid_argument("expected at most " + std::to_string(kMostAxes) + " axes, found " + text_of(sizes));
    int64_t elements = 1;
    for (int64_t size : sizes) {
        if (size < 0 || size > kLargestAxis) throw std::invalid_argument("expected sizes from 0 to 2^31, found " + text_of(sizes));
        // Of empty axes too: strides are products of sizes. The product itself may not fit into an int64.
        const int64_t factor = size == 0 ? 1 : size;
        if (elements > kMostElements / factor)
            throw std::invalid_argument("expected at most 2^40 elements, found " + text_of(sizes));
        elements *= factor;
    }
    for (int64_t size : sizes)
        if (size == 0) return 0;
    return elements;
}

int64_t product_of(std::initializer_list<int64_t> counts) {
    int64_t product = 1;
    bool fits = true;
    for (int64_t count : counts) {
        if (count == 0) return 0;
        fits = fits && !__builtin_mul_overflow(product, count, &product);
    }
    return fits ? product : INT64_MAX;
}

Sizes dense_strides(const Sizes& sizes) {
    Sizes strides(sizes.size());
    int64_t stride = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
        strides[i] = stride;
        stride *= sizes[i] == 0 ? 1 : sizes[i];
    }
    return strides;
}

int64_t View::elements() const {
    int64_t elements = 1;
    for (int64_t size : sizes) elements *= size;
    return elements;
}

bool View::dense() const {
    int64_t stride = 1;
    for (size_t i = sizes.size(); i-- > 0;) {
        if (sizes[i] != 1 && strides[i] != stride) return elements() == 0;
        stride *= sizes[i];
    }
    return true;
}

}  // namespace weightpager

// The operators, a family in each file.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "program/kv_cache.hpp"
#include "program/operator.hpp"

namespace weightpager {

std::vector<Operator> element_operators();
std::vector<Operator> comparison_operators();
std::vector<Operator> norm_operators();
std::vector<Operator> reduction_operators();
std::vector<Operator> shape_operators();
std::vector<Operator> selection_operators();
std::vector<Operator> product_operators();
std::vector<Operator> attention_operators();
std::vector<Operator> rotary_operators();
std::vector<Operator> convolution_operators();

// Which layer of a KV cache a step appends to, and how its keys and values are shaped; nothing of other steps.
std::optional<std::pair<int64_t, KVCache::Shape>> cached_layer(const Step& step);

// The sizes that operands broadcast to, as numpy's do.
Sizes broadcast(const Inference& inference, const std::vector<size_t>& operands);

// That a second operand, or a scalar in its place, goes with a first of some type.
void expect_second(const Inference& inference, Type type);

// A node's attribute that is a number.
template <class T>
T number_of(const Step& step, const char* name) {
    const Attribute& attribute = step.node->attributes.find(name)->second;
    if (const auto* whole = std::get_if<int64_t>(&attribute)) return static_cast<T>(*whole);
    return static_cast<T>(std::get<double>(attribute));
}

template <class T>
T scalar_of(const Step& step) {
    return number_of<T>(step, "scalar");
}

// Of a node's attribute `activation`.
Unary activation_of(const Inference& inference);

}  // namespace weightpager

#include <algorithm>

#include "operator.hpp"
#include "operators/families.hpp"

namespace weightpager {
namespace {

std::vector<Operator> all_operators() {
    std::vector<Operator> all;
    for (const auto& family :
         {element_operators(), comparison_operators(), norm_operators(), reduction_operators(), shape_operators(),
          selection_operators(), product_operators(), convolution_operators(), attention_operators(), rotary_operators()})
        all.insert(all.end(), family.begin(), family.end());
    std::sort(all.begin(), all.end(), [](const Operator& a, const Operator& b) { return std::string(a.name) < b.name; });
    return all;
}

const std::vector<Operator>& operators() {
    static const std::vector<Operator> all = all_operators();
    return all;
}

}  // namespace

const Operator* find_operator(const std::string& name) {
    for (const Operator& each : operators())
        if (name == each.name) return &each;
    return nullptr;
}

std::vector<std::string> operator_names() {
    std::vector<std::string> names;
    for (const Operator& each : operators()) names.emplace_back(each.name);
    return names;
}

}  // namespace weightpager

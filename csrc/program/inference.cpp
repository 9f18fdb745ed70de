#include <stdexcept>

#include "operator.hpp"
#include "plan.hpp"

namespace weightpager {
namespace {

template <class T>
const T* as(const Attribute& attribute) {
    return std::get_if<T>(&attribute);
}

// The buffers of all plans together stay far below what an int64 counts.
constexpr int64_t kMostScratch = int64_t{1} << 44;

// Of a call: twice what a model of 70 billion weights takes to read 8,192 tokens at once.
constexpr int64_t kMostProducts = int64_t{1} << 50;

}  // namespace

const View& Inference::in(size_t i) const {
    expect(has(i), "expected operand ", i, ", found none");
    return step_.in[i];
}

bool Inference::is_parameter(size_t i) const { return has(i) && step_.in[i].memory == Memory::parameter; }

bool Inference::is_mask(size_t i) const {
    return in(i).memory == Memory::input && planning_.inputs[static_cast<size_t>(in(i).number)].is_mask;
}

const Parameter& Inference::parameter(size_t i) const {
    expect(in(i).memory == Memory::parameter, "operand ", i, ": expected a parameter");
    return planning_.parameters[static_cast<size_t>(in(i).number)];
}

const Parameter& Inference::weight(size_t i) const {
    const Parameter& stored = parameter(i);
    const View& view = in(i);
    expect(view.offset == 0 && view.sizes == stored.sizes && view.dense(), "operand ", i, ": expected ", stored.name,
           " as it is stored, ", stored.sizes, ", found ", view.sizes,
           " of it, a part or in another order: store it as it is needed");
    return stored;
}

const View& Inference::dense(size_t i) {
    const View& from = in(i);
    if (from.dense()) return from;
    Step copy;
    copy.node = &node_;
    copy.run = &copy_elements;
    copy.in.push_back(from);
    View to{from.type, from.sizes, dense_strides(from.sizes), Memory::buffer,
            planning_.add_buffer(from.elements() * bytes_of(from.type)), 0};
    copy.out.push_back(to);
    planning_.use(from);
    planning_.plan.steps.push_back(std::move(copy));
    step_.in[i] = to;
    return step_.in[i];
}

const View& Inference::dense_rows(size_t i) {
    const View& from = in(i);
    return from.sizes.empty() || from.sizes.back() <= 1 || from.strides.back() == 1 ? from : dense(i);
}

const Attribute& Inference::attribute(const std::string& name) const {
    const auto found = node_.attributes.find(name);
    if (found == node_.attributes.end()) fail("expected an attribute ", name, ", found none");
    return found->second;
}

int64_t Inference::integer(const std::string& name) const {
    const auto* found = as<int64_t>(attribute(name));
    if (found == nullptr) fail("attribute ", name, ": expected an integer");
    return *found;
}

double Inference::number(const std::string& name) const {
    const Attribute& one = attribute(name);
    if (const auto* whole = as<int64_t>(one)) return static_cast<double>(*whole);
    if (const auto* found = as<double>(one)) return *found;
    fail("attribute ", name, ": expected a number");
}

void Inference::number_of_type(const std::string& name, Type type) const {
    if (type == Type::int64)
        integer(name);
    else
        number(name);
}

bool Inference::flag(const std::string& name) const {
    const auto* found = as<bool>(attribute(name));
    if (found == nullptr) fail("attribute ", name, ": expected true or false");
    return *found;
}

std::string Inference::word(const std::string& name) const {
    const auto* found = as<std::string>(attribute(name));
    if (found == nullptr) fail("attribute ", name, ": expected a word");
    return *found;
}

int64_t Inference::stated(int64_t size) const {
    if (size == kBatch || size == kLength || size == kFeatures) {
        const int64_t found = size == kBatch ? planning_.batch : size == kLength ? planning_.length : planning_.features;
        expect(found >= 0, "expected an input that states a size that an attribute names");
        return found;
    }
    return size;
}

Sizes Inference::sizes(const std::string& name) const {
    const auto* found = as<Sizes>(attribute(name));
    if (found == nullptr) fail("attribute ", name, ": expected a list of integers");
    Sizes sizes = *found;
    expect(sizes.size() <= kMostAxes, "attribute ", name, ": expected at most 8 numbers");
    for (int64_t& size : sizes) size = stated(size);
    return sizes;
}

int64_t Inference::bound(const std::string& name) const { return stated(integer(name)); }

int64_t Inference::axis(const std::string& name, int64_t rank) const {
    const int64_t axis = integer(name);
    expect(axis >= 0 && axis < rank, "attribute ", name, ": expected an axis below ", rank, ", found ", axis);
    return axis;
}

int64_t Inference::elements_of(const Sizes& sizes) const {
    try {
        return checked_elements(sizes);
    } catch (const std::invalid_argument& error) {
        fail(error.what());
    }
}

View Inference::own(Type type, const Sizes& sizes) {
    const int64_t bytes = elements_of(sizes) * bytes_of(type);
    return {type, sizes, dense_strides(sizes), Memory::buffer, planning_.add_buffer(bytes), 0};
}

View& Inference::give(Type type, const Sizes& sizes) {
    step_.out.push_back(own(type, sizes));
    return step_.out.back();
}

void Inference::give_view(View view) { step_.out.push_back(std::move(view)); }

void Inference::want_scratch(int64_t bytes) {
    expect(bytes >= 0 && bytes < kMostScratch, "expected less memory to be needed");
    step_.scratch = {Type::boolean, {bytes}, {1}, Memory::buffer, planning_.add_buffer(bytes), 0};
}

void Inference::want_products(std::initializer_list<int64_t> counts) {
    int64_t products = 1;
    for (int64_t count : counts) products = product_of({products, count == 0 ? 1 : count});
    expect(products <= kMostProducts - planning_.products, "expected at most 2^50 multiplications in a call, found ",
           product_of({products, 1}), " here and ", planning_.products, " before: give fewer or shorter inputs");
    planning_.products += products;
}

bool Inference::share(const std::string& key, int64_t bytes) {
    const auto found = planning_.shared.find(key);
    if (found == planning_.shared.end()) {
        want_scratch(bytes);
        planning_.shared[key] = step_.scratch.number;
        return true;
    }
    step_.scratch = {Type::boolean, {bytes}, {1}, Memory::buffer, found->second, 0};
    return false;
}

std::string Inference::name_of(size_t i) const { return std::to_string(node_.operands.at(i)); }

void Inference::expect_type(size_t i, Type type) const {
    expect(in(i).type == type, "operand ", i, ": expected ", type, ", found ", in(i));
}

void Inference::refuse(const std::string& what) const {
    throw std::invalid_argument("node " + std::to_string(planning_.plan.node_ends.size()) + " (" + node_.op->name + "): " + what);
}

}  // namespace weightpager

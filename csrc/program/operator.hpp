// What an operator is to a program: it says what comes of operands of some shapes, and computes that.
#pragma once

#include <any>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "node.hpp"
#include "operators/vector/vectors.hpp"
#include "value.hpp"

namespace weightpager {

class KVCache;

// One thing to do, with everything about shapes settled.
struct Step {
    const Node* node = nullptr;
    void (*run)(const Step& step, const struct Running& running) = nullptr;
    std::vector<View> in, out;  // what is left out is a view of no memory: `number` is -1
    View scratch;
    std::any settled;  // what the operator has settled for its runs, of a type of its own

    template <class T>
    const T& recall() const {
        return std::any_cast<const T&>(settled);
    }
};

// What a run knows.
struct Running {
    const Kernel& kernel;
    const Vectors& vectors;
    int threads;
    const std::vector<Parameter>& parameters;
    const std::vector<View>& inputs;  // of this call
    const std::vector<const void*>& input_data;
    uint8_t* activations;
    const std::vector<int64_t>& buffer_offsets;  // in bytes
    KVCache* cache;
    int64_t* missing;  // a page that isn't resident, or kAllResident

    // Whatever T is, the view's first element: offsets are counted in elements of the view's own type.
    template <class T = float>
    T* data(const View& view) const {
        const void* start = view.memory == Memory::input       ? input_data[static_cast<size_t>(view.number)]
                            : view.memory == Memory::parameter ? parameters[static_cast<size_t>(view.number)].data
                                                             : activations + buffer_offsets[static_cast<size_t>(view.number)];
        auto* bytes = static_cast<uint8_t*>(const_cast<void*>(start));
        return static_cast<T*>(static_cast<void*>(bytes + view.offset * bytes_of(view.type)));
    }

    // As many threads as so much work is worth; a unit is about an addition.
    int worth(int64_t work) const {
        constexpr int64_t kWorthAThread = 1 << 14;
        const int64_t most = 1 + work / kWorthAThread;
        return most < threads ? static_cast<int>(most) : threads;
    }
};

// What a node's operands are, for its operator to check and to say what comes of them. Wrong ones throw
// std::invalid_argument.
class Inference {
   public:
    Inference(const Node& node, Step& step, struct Planning& planning) : node_(node), step_(step), planning_(planning) {}

    size_t operands() const { return step_.in.size(); }
    bool has(size_t i) const { return i < step_.in.size() && step_.in[i].number >= 0; }
    const View& in(size_t i) const;
    // The parameter that an operand is or looks at; throws if it is none.
    const Parameter& parameter(size_t i) const;
    // The same, for operators that read it as it is stored and not as the operand's view says; throws if the view is
    // of a part of it or in another order.
    const Parameter& weight(size_t i) const;
    bool is_parameter(size_t i) const;
    // Whether an operand is an input that attention alone sees, whose length may be another in each call.
    bool is_mask(size_t i) const;

    // An operand as this step alone sees it.
    View& change(size_t i) { return step_.in[i]; }

    // Sees to it that an operand has no gaps (by a copy before the step), and returns it.
    const View& dense(size_t i);
    // The same, but only its last axis need have none.
    const View& dense_rows(size_t i);

    int64_t integer(const std::string& name) const;
    double number(const std::string& name) const;
    // That an attribute is a number for values of some type: a whole one beside int64.
    void number_of_type(const std::string& name, Type type) const;
    bool flag(const std::string& name) const;
    std::string word(const std::string& name) const;
    Sizes sizes(const std::string& name) const;  // with batch and length filled in
    int64_t bound(const std::string& name) const;
    bool given(const std::string& name) const { return node_.attributes.count(name) != 0; }
    int64_t axis(const std::string& name, int64_t rank) const;
    // How many elements a value of these sizes has. Fails where that is more than there may be.
    int64_t elements_of(const Sizes& sizes) const;

    // A value of its own memory; of the second, the result may be another view.
    View& give(Type type, const Sizes& sizes);
    View own(Type type, const Sizes& sizes);
    // One that looks at an operand's memory.
    void give_view(View view);
    void want_scratch(int64_t bytes);
    // So many multiplications. Operands that are expanded take no memory, which then bounds nothing. None counts as one: the
    // loops around it run.
    void want_products(std::initializer_list<int64_t> counts);
    // Memory that nodes of the same key have in common; true to the first, which fills it.
    bool share(const std::string& key, int64_t bytes);
    std::string name_of(size_t i) const;  // of an operand's value, for keys
    // For `Step::recall` by what runs.
    template <class T>
    void remember(const T& settled) {
        step_.settled = settled;
    }
    void run_by(void (*run)(const Step&, const Running&)) { step_.run = run; }

    // The words of an error are put together only where there is one.
    template <class... Parts>
    void expect(bool right, const Parts&... parts) const {
        if (!right) fail(parts...);
    }
    void expect_type(size_t i, Type type) const;
    template <class... Parts>
    [[noreturn]] void fail(const Parts&... parts) const {
        refuse((std::string() + ... + text_of(parts)));
    }

   private:
    [[noreturn]] void refuse(const std::string& what) const;
    const Attribute& attribute(const std::string& name) const;
    int64_t stated(int64_t size) const;

    const Node& node_;
    Step& step_;
    Planning& planning_;
};

struct Operator {
    const char* name;
    int outputs;
    void (*infer)(Inference& inference);
    bool weights = false;  // takes parameters that aren't arrays of float32: in blocks, in bfloat16, or elsewhere
};

// Null if there is none of this name.
const Operator* find_operator(const std::string& name);

std::vector<std::string> operator_names();

// Copies a view's elements, in row-major order, to a dense one.
void copy_elements(const Step& step, const Running& running);

// Copies a view's elements, in row-major order, to memory outside the activations.
void copy_out(const View& from, const Running& running, void* to);

}  // namespace weightpager

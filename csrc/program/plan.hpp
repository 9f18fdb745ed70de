// A program for inputs of some shapes: what to do, and where everything lies.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "activation_memory.hpp"
#include "operator.hpp"

namespace weightpager {

struct Plan {
    std::vector<Step> steps;
    std::vector<size_t> node_ends;  // behind each node's last step
    std::vector<View> values;       // by their numbers
    ActivationLayout layout;
};

// While a plan is made.
struct Planning {
    const std::vector<Input>& inputs;
    const std::vector<Parameter>& parameters;
    Plan& plan;
    int64_t batch = -1, length = -1, features = -1;
    int64_t products = 0;
    std::vector<Buffer> buffers{};
    std::map<std::string, int64_t> shared{};

    int64_t add_buffer(int64_t bytes);
    // Says that a step, which isn't among the plan's yet, needs what a view looks at.
    void use(const View& view);
    int64_t now() const { return static_cast<int64_t>(plan.steps.size()); }
};

struct Description {
    std::vector<Input> inputs;
    std::vector<Parameter> parameters;
    std::vector<Node> nodes;
    std::vector<int> outputs;

    int values() const;
};

// Throws std::invalid_argument, which names the node, where shapes don't go together, and std::length_error where the
// activations need more than `most_bytes`. `earlier` tokens are in the KV cache.
Plan make_plan(const Description& description, const std::vector<Sizes>& input_sizes, int64_t earlier, int64_t most_bytes);

}  // namespace weightpager

#include "plan.hpp"

#include <stdexcept>
#include <utility>

namespace weightpager {
namespace {

View view_of_parameter(const Parameter& parameter, size_t number) {
    return {parameter.type, parameter.sizes, dense_strides(parameter.sizes), Memory::parameter, static_cast<int64_t>(number), 0};
}

// Sizes that a call states are the same in all inputs; of a mask, which is the longer one, earlier tokens are part. Its
// name isn't `bind`: the standard library's fits better by the types of its arguments, where that one is in sight.
void take_size(int64_t& stated, int64_t size, int64_t earlier, const Input& input, const Sizes& sizes) {
    if (stated < 0) stated = size;
    if (size != stated && size != stated + earlier)
        throw std::invalid_argument("input " + input.name + ": expected a size of " + std::to_string(stated) +
                                    " as in the inputs before it, found " + text_of(sizes));
}

void take_inputs(Planning& planning, const std::vector<Sizes>& input_sizes, int64_t earlier) {
    if (input_sizes.size() != planning.inputs.size())
        throw std::invalid_argument("expected " + std::to_string(planning.inputs.size()) + " inputs, found " +
                                    std::to_string(input_sizes.size()));
    for (size_t i = 0; i < input_sizes.size(); ++i) {
        const Input& input = planning.inputs[i];
        const Sizes& sizes = input_sizes[i];
        checked_elements(sizes);
        if (sizes.size() != input.sizes.size())
            throw std::invalid_argument("input " + input.name + ": expected " + std::to_string(input.sizes.size()) +
                                        " axes, found " + text_of(sizes));
        for (size_t axis = 0; axis < sizes.size(); ++axis) {
            if (input.is_mask && axis == 1) continue;
            if (input.sizes[axis] == kBatch)
                take_size(planning.batch, sizes[axis], 0, input, sizes);
            else if (input.sizes[axis] == kLength)
                take_size(planning.length, sizes[axis], earlier, input, sizes);
            else if (input.sizes[axis] == kFeatures)
                take_size(planning.features, sizes[axis], 0, input, sizes);
            else if (input.sizes[axis] != sizes[axis])
                throw std::invalid_argument("input " + input.name + ": expected a size of " + std::to_string(input.sizes[axis]) +
                                            " on axis " + std::to_string(axis) + ", found " + text_of(sizes));
        }
        planning.plan.values.push_back({input.type, sizes, dense_strides(sizes), Memory::input, static_cast<int64_t>(i), 0});
    }
}

void add_node(Planning& planning, const Node& node) {
    Step step;
    step.node = &node;
    for (int operand : node.operands)
        step.in.push_back(operand == kNothing ? View{} : planning.plan.values[static_cast<size_t>(operand)]);
    Inference inference(node, step, planning);
    for (size_t i = 0; i < step.in.size() && !node.op->weights; ++i)
        if (inference.is_parameter(i) && !inference.parameter(i).plain())
            inference.fail("operand ", i, ": expected an array of float32, int64 or bool, found ",
                           inference.parameter(i).name);
    node.op->infer(inference);
    if (static_cast<int>(step.out.size()) != node.outputs || (step.run == nullptr && step.out.empty()))
        inference.fail("expected ", step.out.size(), " outputs, found ", node.outputs);
    for (const auto* views : {&step.in, &step.out})
        for (const View& view : *views) planning.use(view);
    planning.use(step.scratch);
    for (const View& view : step.out) planning.plan.values.push_back(view);
    if (step.run != nullptr) planning.plan.steps.push_back(std::move(step));
    planning.plan.node_ends.push_back(planning.plan.steps.size());
}

}  // namespace

int64_t Planning::add_buffer(int64_t bytes) {
    buffers.push_back({bytes, now(), now()});
    return static_cast<int64_t>(buffers.size()) - 1;
}

void Planning::use(const View& view) {
    if (view.memory == Memory::buffer && view.number >= 0) buffers[static_cast<size_t>(view.number)].last = now();
}

int Description::values() const {
    if (nodes.empty()) return static_cast<int>(inputs.size() + parameters.size());
    return nodes.back().first_output + nodes.back().outputs;
}

Plan make_plan(const Description& description, const std::vector<Sizes>& input_sizes, int64_t earlier, int64_t most_bytes) {
    Plan plan;
    plan.values.reserve(static_cast<size_t>(description.values()));
    plan.steps.reserve(description.nodes.size());
    Planning planning{description.inputs, description.parameters, plan};
    take_inputs(planning, input_sizes, earlier);
    for (size_t i = 0; i < description.parameters.size(); ++i)
        plan.values.push_back(view_of_parameter(description.parameters[i], i));
    for (const Node& node : description.nodes) add_node(planning, node);
    plan.steps.shrink_to_fit();  // many nodes have no step of their own, and plans are kept
    for (int output : description.outputs) planning.use(plan.values[static_cast<size_t>(output)]);
    plan.layout = lay_out(planning.buffers);
    if (plan.layout.bytes > most_bytes)
        throw std::length_error("expected inputs whose activations take at most " + std::to_string(most_bytes) +
                                " bytes, found " + std::to_string(plan.layout.bytes) + ": give fewer or shorter ones");
    return plan;
}

}  // namespace weightpager

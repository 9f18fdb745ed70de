#include "program.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <stdexcept>

#include "operators/families.hpp"

namespace weightpager {
namespace {

constexpr size_t kMostPlans = 16;
constexpr size_t kMostSteps = 20000;  // of all plans that are kept; one is kept of any size
constexpr size_t kMostNodes = 20000;
constexpr size_t kMaskOperand = 3;  // of attention

// Whether attention sees an input as a mask, and nothing else sees it: then it may grow without another plan.
bool is_only_mask(const Description& description, size_t input) {
    const auto is_it = [&](int value) { return value == static_cast<int>(input); };
    if (description.inputs[input].sizes.size() != 2) return false;
    if (std::any_of(description.outputs.begin(), description.outputs.end(), is_it)) return false;
    bool used = false;
    for (const Node& node : description.nodes) {
        const bool attends = node.op->name == std::string("attention");
        for (size_t operand = 0; operand < node.operands.size(); ++operand) {
            if (!is_it(node.operands[operand])) continue;
            if (!attends || operand != kMaskOperand) return false;
            used = true;
        }
    }
    return used;
}

}  // namespace

Program::Program(const Kernel& kernel, int64_t most_bytes, std::shared_ptr<Workspaces> workspaces)
    : kernel_(kernel), vectors_(vectors_for(kernel.name)), most_bytes_(most_bytes), workspaces_(std::move(workspaces)) {}

void Program::add_input(Input input) {
    if (!description_.parameters.empty() || !description_.nodes.empty())
        throw std::invalid_argument("expected inputs before parameters and nodes");
    description_.inputs.push_back(std::move(input));
}

void Program::add_parameter(Parameter parameter) {
    if (!description_.nodes.empty()) throw std::invalid_argument("expected parameters before nodes");
    checked_elements(parameter.sizes);
    if (parameter.paged && parameter.sizes != Sizes{parameter.paged->out_features, parameter.paged->in_features})
        throw std::invalid_argument(parameter.name + ": expected the sizes of its weight, found " + text_of(parameter.sizes));
    description_.parameters.push_back(std::move(parameter));
}

void Program::expect_value(int number, int before) const {
    if (number < 0 || number >= before)
        throw std::invalid_argument("expected a value that is defined before its use, below " + std::to_string(before) +
                                    ", found " + std::to_string(number));
}

void Program::add_node(const std::string& op, std::vector<int> operands, std::map<std::string, Attribute> attributes,
                       int outputs) {
    const Operator* known = find_operator(op);
    if (known == nullptr) throw std::invalid_argument("expected an operator that there is, found " + op);
    if (description_.nodes.size() == kMostNodes) throw std::invalid_argument("expected at most 20000 nodes, found more");
    if (outputs != known->outputs)
        throw std::invalid_argument(op + ": expected " + std::to_string(known->outputs) + " outputs, found " + std::to_string(outputs));
    const int before = description_.values();
    for (int operand : operands)
        if (operand != kNothing) expect_value(operand, before);
    // An operand of a place of its own, so that none has to count them.
    constexpr size_t kLeast = 4;
    if (op != "concat") operands.resize(std::max(kLeast, operands.size()), kNothing);
    description_.nodes.push_back({known, std::move(operands), std::move(attributes), before, outputs});
    plans_.clear();
}

void Program::add_output(int value) {
    expect_value(value, description_.values());
    description_.outputs.push_back(value);
    for (size_t i = 0; i < description_.inputs.size(); ++i)
        description_.inputs[i].is_mask = is_only_mask(description_, i);
    plans_.clear();
}

const Plan& Program::plan_for(const std::vector<Sizes>& sizes, int64_t earlier) {
    const auto same = [&](const auto& known) {
        if (known.first.size() != sizes.size()) return false;
        for (size_t i = 0; i < sizes.size(); ++i) {
            const bool mask = description_.inputs[i].is_mask && sizes[i].size() == 2 && known.first[i].size() == 2;
            if (mask ? known.first[i][0] != sizes[i][0] : known.first[i] != sizes[i]) return false;
        }
        return true;
    };
    const auto found = std::find_if(plans_.begin(), plans_.end(), same);
    if (found != plans_.end()) {
        plans_.splice(plans_.begin(), plans_, found);
        return plans_.front().second;
    }
    Plan plan = make_plan(description_, sizes, earlier, most_bytes_);
    size_t steps = plan.steps.size();
    for (const auto& known : plans_) steps += known.second.steps.size();
    for (; plans_.size() >= kMostPlans || (steps > kMostSteps && !plans_.empty()); plans_.pop_back())
        steps -= plans_.back().second.steps.size();
    plans_.emplace_front(sizes, std::move(plan));
    ++plans_made_;
    return plans_.front().second;
}

std::vector<View> Program::outputs(const std::vector<Sizes>& sizes) const {
    const Plan plan = make_plan(description_, sizes, 0, std::numeric_limits<int64_t>::max());
    std::vector<View> views;
    for (int output : description_.outputs) views.push_back(plan.values[static_cast<size_t>(output)]);
    return views;
}

int64_t Program::cache_block_bytes(const std::vector<Sizes>& sizes, bool halves) const {
    const Plan plan = make_plan(description_, sizes, 0, most_bytes_);
    std::map<int64_t, KVCache::Shape> layers;
    for (const Step& step : plan.steps)
        if (const auto layer = cached_layer(step)) layers.insert(*layer);
    int64_t bytes = 0;
    for (const auto& [index, shape] : layers)
        if (__builtin_add_overflow(bytes, KVCache::block_bytes(shape, halves), &bytes)) return INT64_MAX;
    return bytes;
}

void Program::begin(std::vector<const void*> data, const std::vector<Sizes>& sizes, std::shared_ptr<KVCache> cache) {
    call_.reset();
    // What a call has left that failed before any token was kept.
    if (cache != nullptr && cache->tokens() == 0) cache->shorten(0);
    if (data.size() != sizes.size()) throw std::invalid_argument("expected as many addresses as sizes");
    const Plan& plan = plan_for(sizes, cache == nullptr ? 0 : cache->tokens());
    int64_t tokens = 0, batch = 0;
    std::vector<View> inputs;
    for (size_t i = 0; i < sizes.size(); ++i) {
        const Input& input = description_.inputs[i];
        inputs.push_back({input.type, sizes[i], dense_strides(sizes[i]), Memory::input, static_cast<int64_t>(i), 0});
        for (size_t axis = 0; axis < sizes[i].size() && tokens == 0; ++axis)
            if (input.sizes[axis] == kLength && !input.is_mask) tokens = sizes[i][axis];
        for (size_t axis = 0; axis < sizes[i].size(); ++axis)
            if (input.sizes[axis] == kBatch) batch = sizes[i][axis];
    }
    if (cache != nullptr) cache->take_batch(batch);  // a graph may have lost all attentions
    call_.emplace(Call{&plan, std::move(inputs), std::move(data), std::move(cache), tokens,
                       Workspaces::borrow(workspaces_, plan.layout.bytes)});
}

const Program::Call& Program::call() const {
    if (!call_) throw std::logic_error("expected a call that has begun");
    return *call_;
}

Running Program::running(int threads, int64_t* missing) const {
    const Call& now = call();
    return {kernel_,  vectors_, threads, description_.parameters, now.inputs, now.data, now.workspace.memory(),
            now.plan->layout.offsets, now.cache.get(), missing};
}

int64_t Program::run(int first, int end, int threads) {
    const Plan& plan = *call().plan;
    const int nodes = static_cast<int>(plan.node_ends.size());
    if (first < 0 || first > end || end > nodes)
        throw std::invalid_argument("expected nodes from 0 to " + std::to_string(nodes) + ", found " + std::to_string(first) +
                                    " to " + std::to_string(end));
    int64_t missing = kAllResident;
    const Running running = this->running(std::max(1, threads), &missing);
    const size_t from = first == 0 ? 0 : plan.node_ends[static_cast<size_t>(first) - 1];
    const size_t to = end == 0 ? 0 : plan.node_ends[static_cast<size_t>(end) - 1];
    for (size_t i = from; i < to && missing == kAllResident; ++i) plan.steps[i].run(plan.steps[i], running);
    return missing;
}

void Program::finish() {
    if (call().cache != nullptr) call().cache->keep(call().tokens);
    call_.reset();
}

const View& Program::value(int number) const {
    expect_value(number, description_.values());
    // Of an input, what this call has brought: a mask may be longer than that which the plan was made for.
    const size_t at = static_cast<size_t>(number);
    return at < call().inputs.size() ? call().inputs[at] : call().plan->values[at];
}

void Program::read(int number, void* to) const {
    copy_out(value(number), running(1, nullptr), to);
}

void Program::write(int number, const void* from, int64_t bytes) {
    const View& to = value(number);
    if (to.memory != Memory::buffer || !to.dense() || to.elements() * bytes_of(to.type) != bytes)
        throw std::invalid_argument("expected " + text_of(to) + " of a node, found " + std::to_string(bytes) + " bytes");
    const Running running = this->running(1, nullptr);
    std::memcpy(running.activations + running.buffer_offsets[static_cast<size_t>(to.number)] + to.offset * bytes_of(to.type),
                from, static_cast<size_t>(bytes));
}

}  // namespace weightpager

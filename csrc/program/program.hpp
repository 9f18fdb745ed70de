// A graph with its parameters, ready to run on inputs of any shapes that go together.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "kv_cache.hpp"
#include "plan.hpp"
#include "workspaces.hpp"

namespace weightpager {

// One thread at a time. Parameters' memory belongs to the caller and stays; paged weights' pages may come and go between
// steps.
class Program {
   public:
    // Activations of a call take `most_bytes` at most, of workspaces that other programs may have, too.
    Program(const Kernel& kernel, int64_t most_bytes, std::shared_ptr<Workspaces> workspaces = std::make_shared<Workspaces>());
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    // The description is put together before the first call. They throw std::invalid_argument.
    void add_input(Input input);
    void add_parameter(Parameter parameter);
    void add_node(const std::string& op, std::vector<int> operands, std::map<std::string, Attribute> attributes, int outputs);
    void add_output(int value);

    // What a call with inputs of these sizes would give, in the outputs' order. Nothing is computed, and no address is used.
    std::vector<View> outputs(const std::vector<Sizes>& sizes) const;

    // Takes a call's inputs, whose memory must stay until it has ended, and finds or makes a plan for their shapes. The
    // cache is that of causal attentions, or none; a call that ends early leaves it as it was.
    void begin(std::vector<const void*> data, const std::vector<Sizes>& sizes, std::shared_ptr<KVCache> cache);

    // Runs nodes [first, end). Returns `kAllResident`, or a page that isn't: the same nodes may then be run again.
    int64_t run(int first, int end, int threads);

    // All nodes have run: their keys and values count, and the inputs are forgotten.
    void finish();

    // The call is over, however far it came: its workspace is others'.
    void end() { call_.reset(); }

    // Bytes by which the KV cache of a call with inputs of these sizes grows at a time: a block of each causal attention.
    // Nothing is computed. It throws as `begin` does.
    int64_t cache_block_bytes(const std::vector<Sizes>& sizes, bool halves) const;

    const View& value(int number) const;
    // Copies a value, in row-major order.
    void read(int number, void* to) const;
    // Fills a node's value in its place.
    void write(int number, const void* from, int64_t bytes);

    const Description& description() const { return description_; }
    int64_t activation_bytes() const { return workspaces_->bytes(); }
    int64_t plans_made() const { return plans_made_; }

   private:
    struct Call {
        const Plan* plan;
        std::vector<View> inputs;
        std::vector<const void*> data;
        std::shared_ptr<KVCache> cache;
        int64_t tokens;
        Workspaces::Loan workspace;
    };

    const Plan& plan_for(const std::vector<Sizes>& sizes, int64_t earlier);
    Running running(int threads, int64_t* missing) const;
    void expect_value(int number, int before) const;
    const Call& call() const;

    const Kernel& kernel_;
    const Vectors& vectors_;
    const int64_t most_bytes_;
    Description description_;
    std::list<std::pair<std::vector<Sizes>, Plan>> plans_;  // the latest first
    int64_t plans_made_ = 0;
    const std::shared_ptr<Workspaces> workspaces_;
    std::optional<Call> call_;
};

}  // namespace weightpager

#include "programs.hpp"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "paged_weight.hpp"
#include "program/program.hpp"
#include "random.hpp"
#include "test_case.hpp"

using namespace weightpager;

namespace {

constexpr int64_t kMostBytes = 1 << 22;

class RandomProgram {
   public:
    RandomProgram(const Kernel& kernel, int64_t number)
        : random_(static_cast<uint64_t>(number)), test_(test_case(number, random_)), weight_(test_, random_), program_(kernel, kMostBytes) {}

    void build() {
        add_inputs();
        add_parameters();
        for (int64_t i = random_.between(1, 6); i > 0; --i) add_node();
        narrow_ = random_.one_in(2);
        for (int value = 0; value < program_.description().values(); ++value)
            if (value >= first_node_) program_.add_output(value);
    }

    // All that the nodes have come to.
    std::vector<uint8_t> run(int threads, bool with_cache) {
        std::vector<const void*> data;
        for (const auto& bytes : contents_) data.push_back(bytes.data());
        auto cache = with_cache ? std::make_shared<KVCache>(kMostBytes, narrow_) : nullptr;
        std::vector<uint8_t> all;
        for (int turn = 0; turn < (with_cache ? 2 : 1); ++turn) {
            program_.begin(data, sizes_, cache);
            const int nodes = static_cast<int>(program_.description().nodes.size());
            for (int first = 0; first < nodes; ++first)
                if (program_.run(first, first + 1, threads) != kAllResident) throw std::logic_error("a page is missing");
            for (int output : program_.description().outputs) {
                const View& view = program_.value(output);
                std::vector<uint8_t> one(static_cast<size_t>(view.elements() * bytes_of(view.type)));
                program_.read(output, one.data());
                all.insert(all.end(), one.begin(), one.end());
            }
            program_.finish();
        }
        return all;
    }

   private:
    int64_t size() { return random_.any<int64_t>({0, 1, 1, 2, 2, 3, 4, 5, 17, 33}); }

    Sizes shape(int64_t rank) {
        Sizes sizes;
        for (int64_t i = 0; i < rank; ++i) sizes.push_back(size());
        return sizes;
    }

    // Of just its size, so that a sanitizer sees what reads beyond.
    std::vector<uint8_t> content(Type type, const Sizes& sizes) {
        const int64_t count = checked_elements(sizes);
        std::vector<uint8_t> bytes(static_cast<size_t>(count * bytes_of(type)));
        for (int64_t i = 0; i < count; ++i) {
            const float number = 3 * random_.number();
            const int64_t whole = random_.between(-2, 5);
            if (type == Type::float32)
                std::memcpy(bytes.data() + i * 4, &number, 4);
            else if (type == Type::int64)
                std::memcpy(bytes.data() + i * 8, &whole, 8);
            else
                bytes[static_cast<size_t>(i * bytes_of(type))] = static_cast<uint8_t>(whole & 1);
        }
        return bytes;
    }

    void add_inputs() {
        for (Type type : {Type::float32, Type::float32, Type::int64, Type::boolean, Type::float32}) {
            sizes_.push_back(shape(random_.between(0, 4)));
            contents_.push_back(content(type, sizes_.back()));
            program_.add_input({"x" + std::to_string(sizes_.size()), type, sizes_.back()});
        }
        const Sizes heads{random_.between(1, 2), random_.between(1, 70), random_.between(1, 3), random_.between(1, 20)};
        sizes_.push_back(heads);
        contents_.push_back(content(Type::float32, heads));
        Sizes declared = heads;
        if (random_.one_in(2)) declared[1] = random_.one_in(2) ? kLength : kFeatures;
        program_.add_input({"heads", Type::float32, declared});
        sizes_.push_back({random_.between(1, 3), test_.in_features});
        contents_.push_back(content(Type::float32, sizes_.back()));
        program_.add_input({"x", Type::float32, sizes_.back()});
    }

    void add_parameters() {
        for (Type type : {Type::float32, Type::bfloat16, Type::float32, Type::int64}) {
            Parameter parameter;
            parameter.name = "array";
            parameter.type = type;
            parameter.sizes = shape(random_.between(1, 4));
            kept_.push_back(content(type, parameter.sizes));
            parameter.data = kept_.back().data();
            program_.add_parameter(parameter);
        }
        Parameter paged;
        paged.name = "paged";
        paged.paged = weight_.matrix();
        paged.sizes = {test_.out_features, test_.in_features};
        program_.add_parameter(paged);
        paged_ = program_.description().values() - 1;
        const int64_t rank = random_.between(1, 9);
        for (const Sizes& sizes : {Sizes{rank, test_.in_features}, Sizes{test_.out_features, rank}}) {
            Parameter part;
            part.name = "part";
            part.sizes = sizes;
            kept_.push_back(content(Type::float32, sizes));
            part.data = kept_.back().data();
            program_.add_parameter(part);
        }
        first_node_ = program_.description().values();
    }

    Attribute attribute(const std::string& name) {
        static const std::vector<std::string> words = {"none", "tanh", "gelu", "silu", "float32", "int64", "bool", "bhtd", "bthd"};
        if (random_.one_in(30)) return random_.any<Attribute>({true, int64_t{3}, 0.5, std::string("none"), Sizes{1, 2}});
        if (name == "shape" || name == "axes" || name == "stride" || name == "padding") {
            Sizes sizes = name == "shape" ? shape(random_.between(0, 4)) : Sizes{};
            for (int64_t i = random_.between(0, 4); name != "shape" && i > 0; --i) sizes.push_back(random_.between(0, 3));
            if (random_.one_in(3)) sizes.push_back(random_.any<int64_t>({-1, kBatch, kLength, kFeatures, kLargestAxis, -7}));
            return sizes;
        }
        if (name == "keep" || name == "causal" || name == "interleaved") return random_.one_in(2);
        if (name == "activation" || name == "approximate" || name == "dtype") return random_.any(words);
        if (name == "layout") return std::string(random_.one_in(4) ? "bhtd" : "bthd");
        if (name == "scale" || name == "epsilon" || name == "scaling") return 0.5;
        if (name == "value") return number(0.5);
        if (name == "softcap") return random_.one_in(2) ? 0.0 : 2.0;
        return random_.any<int64_t>({0, 0, 1, 1, 2, 3, -1, 5, kOpen, kLength, kLargestAxis, INT64_MAX});
    }

    // Beside int64 a number must be whole.
    Attribute number(double one) { return random_.one_in(2) ? Attribute(one) : Attribute(int64_t{2}); }

    void add_node() {
        static const std::vector<std::string> names = {
            "shape", "axes", "stride", "padding", "keep", "causal", "interleaved", "activation", "approximate", "dtype",
            "layout", "scale", "epsilon", "scaling", "value", "softcap", "axis", "start", "end", "step", "window",
            "index", "groups", "offset"};
        const std::string op = random_.one_in(6) ? std::string("attention") : random_.any(operator_names());
        std::map<std::string, Attribute> attributes;
        for (const std::string& name : names) attributes[name] = attribute(name);
        std::vector<int> operands;
        const int values = program_.description().values();
        for (int64_t i = random_.between(1, 4); i > 0; --i)
            operands.push_back(random_.one_in(8) ? kNothing : static_cast<int>(random_.below(values)));
        if (operands.size() < 2 && random_.one_in(2)) attributes["scalar"] = number(2.0);
        if (op == "attention" && !random_.one_in(4)) operands = {5, 5, 5};  // the heads
        if (op == "linear" && !random_.one_in(4)) operands = {6, paged_};
        if (op == "linear" && random_.one_in(4)) operands = {6, paged_, kNothing, paged_ + 1, paged_ + 2};
        if (op == "gated_linear" && random_.one_in(2)) operands = {6, paged_, paged_, kNothing, kNothing, paged_ + 1, paged_ + 2};
        program_.add_node(op, operands, attributes, find_operator(op)->outputs);
    }

    Random random_;
    TestCase test_;
    PagedWeight weight_;
    Program program_;
    std::vector<Sizes> sizes_;
    std::vector<std::vector<uint8_t>> contents_, kept_;
    int paged_ = 0, first_node_ = 0;
    bool narrow_ = false;
};

// Wrong programs and inputs throw these, and nothing else.
template <class Body>
bool refuses(const Body& body) {
    try {
        body();
    } catch (const std::invalid_argument&) {
        return true;
    } catch (const std::length_error&) {
        return true;
    } catch (const std::out_of_range&) {
        return true;
    }
    return false;
}

// Whether a program of one operator, behind such a value and, if `other` isn't empty, another, is refused.
bool refuses_node(const Kernel& kernel, const std::string& op, const Sizes& one, const Sizes& other, const Sizes& shape) {
    Program program(kernel, kMostBytes);
    program.add_input({"x", Type::float32, {1}});
    const auto add = [&](const std::string& name, const std::vector<int>& operands, const Sizes& sizes) {
        program.add_node(name, operands, {{"shape", sizes}, {"value", 1.0}, {"dtype", std::string("float32")}}, 1);
        return program.description().values() - 1;
    };
    std::vector<int> operands;
    for (const Sizes& sizes : {one, other})
        if (!sizes.empty()) operands.push_back(add("expand", {add("full", {}, Sizes(sizes.size(), 1))}, sizes));
    program.add_output(add(op, operands, shape));
    const float x = 1;
    try {
        program.begin({&x}, {{1}}, nullptr);
    } catch (const std::invalid_argument&) {
        return true;
    }
    return false;
}

// Products of sizes that are 0, negative or beyond 64 bits there.
std::vector<std::string> size_mistakes(const Kernel& kernel) {
    constexpr int64_t kMany = 1 << 20, kMore = 1 << 24, kFewer = 1 << 23;
    std::vector<std::string> found;
    const auto expect_refusal = [&](const char* op, const Sizes& one, const Sizes& other, const Sizes& shape) {
        if (!refuses_node(kernel, op, one, other, shape))
            found.push_back(std::string(kernel.name) + ", " + op + ": sizes beyond 2^40 elements are taken");
    };
    for (int64_t last : {kMore, kFewer}) {
        expect_refusal("full", {}, {}, {kMany, kMany, last});
        expect_refusal("expand", {1, 1, 1}, {}, {kMany, kMany, last});
        expect_refusal("add", {kMany, kMany, 1}, {1, 1, last}, {});
        expect_refusal("reshape", {0, 1}, {}, {kMany, kMany, last});
        expect_refusal("reshape", {0, 1}, {}, {0, kLargestAxis, kLargestAxis, last});
    }
    return found;
}

bool lays_out(const std::vector<Buffer>& buffers) {
    try {
        lay_out(buffers);
    } catch (const std::invalid_argument&) {
        return false;
    }
    return true;
}

// What is needed at once lies apart, and what would take long to lay out is refused.
std::vector<std::string> layout_mistakes() {
    std::vector<std::string> found;
    Random random(11);
    for (int turn = 0; turn < 200; ++turn) {
        std::vector<Buffer> buffers;
        for (int64_t step = 0; step < random.between(1, 80); ++step)
            buffers.push_back({random.between(0, 400), step, step + random.between(0, random.one_in(8) ? 80 : 6)});
        const ActivationLayout layout = lay_out(buffers);
        for (size_t a = 0; a < buffers.size(); ++a)
            for (size_t b = 0; b < a; ++b) {
                const bool at_once = buffers[b].last >= buffers[a].first && buffers[a].last >= buffers[b].first;
                const bool apart = layout.offsets[b] + buffers[b].bytes <= layout.offsets[a] ||
                                   layout.offsets[a] + buffers[a].bytes <= layout.offsets[b];
                if (at_once && !apart && buffers[a].bytes > 0 && buffers[b].bytes > 0)
                    found.push_back("layout: buffers that are needed at once share memory");
            }
    }
    std::vector<Buffer> many, short_lived;
    for (int64_t step = 0; step < 20000; ++step) {
        short_lived.push_back({64, step, step + 40});
        many.push_back({64, step, 20000});
    }
    if (!lays_out(short_lived)) found.push_back("layout: a long graph is refused");
    if (lays_out(many)) found.push_back("layout: a graph is taken in which everything is needed at once");
    return found;
}

#if !defined(__SANITIZE_ADDRESS__)  // which ends the process where there is no memory
// Runs out of memory: there are no 2^48 bytes.
template <class Body>
bool runs_out(const Body& body) {
    try {
        body();
    } catch (const std::bad_alloc&) {
        return true;
    }
    return false;
}

std::vector<std::string> kv_cache_mistakes() {
    std::vector<std::string> found;
    KVCache grows(INT64_MAX);
    for (int turn = 0; turn < 2; ++turn)
        if (!runs_out([&] { grows.room_for(0, {1, 1, 1, int64_t{1} << 40}, 1); }))
            found.push_back("KV cache: keys without values, once memory ran out");
    KVCache chooses(INT64_MAX);
    chooses.room_for(0, {2, 1, 0, 0}, 1);
    chooses.room_for(1, {2, 1, 0, 1 << 18}, 1);
    chooses.keep(1);
    if (!runs_out([&] { chooses.select(std::vector<int64_t>(1 << 22)); }) || chooses.tokens() != 0 || chooses.bytes() != 0)
        found.push_back("KV cache: some layers have other rows, once memory ran out");
    return found;
}
#else
std::vector<std::string> kv_cache_mistakes() { return {}; }
#endif

}  // namespace

std::vector<std::string> program_mistakes(const Kernel& kernel, int64_t cases) {
    std::vector<std::string> found = size_mistakes(kernel), torn = kv_cache_mistakes(), overlaps = layout_mistakes();
    found.insert(found.end(), torn.begin(), torn.end());
    found.insert(found.end(), overlaps.begin(), overlaps.end());
    int64_t ran = 0;
    for (int64_t number = 0; number < cases; ++number) {
        RandomProgram program(kernel, number);
        std::vector<uint8_t> one, three;
        const bool with_cache = number % 3 == 0;
        if (refuses([&] {
                program.build();
                one = program.run(1, with_cache);
                three = program.run(3, with_cache);
            }))
            continue;
        ++ran;
        if (one != three)
            found.push_back(std::string(kernel.name) + ", program " + std::to_string(number) +
                            ": the result depends on the number of threads");
    }
    if (ran * 50 < cases) found.push_back("only " + std::to_string(ran) + " of " + std::to_string(cases) + " programs ran");
    return found;
}

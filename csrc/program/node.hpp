// What a program is made of.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "linear/paged_linear.hpp"
#include "value.hpp"

namespace weightpager {

// Sizes that a call states, and a bound that is left open, among an attribute's numbers.
constexpr int64_t kBatch = INT64_MIN + 1, kLength = INT64_MIN + 2, kFeatures = INT64_MIN + 3;
constexpr int64_t kOpen = INT64_MIN + 4;

using Attribute = std::variant<bool, int64_t, double, std::string, Sizes>;

struct Operator;

constexpr int kNothing = -1;  // in place of an operand that is left out

// Values are numbered: inputs first, then parameters, then what the nodes give, in their order.
struct Node {
    const Operator* op;
    std::vector<int> operands;
    std::map<std::string, Attribute> attributes;
    int first_output, outputs;
};

// Memory belongs to the caller, and stays.
struct Parameter {
    std::string name;            // for errors
    const void* data = nullptr;  // dense
    Type type = Type::float32;
    Sizes sizes;
    // A weight in blocks instead; of a table all blocks are there, a row of them a page.
    std::optional<PagedMatrix> paged;
    bool table = false;
    bool elsewhere = false;  // rows that the caller looks up when a call comes to them

    bool plain() const { return !paged && !elsewhere && type != Type::bfloat16; }
};

struct Input {
    std::string name;
    Type type;
    Sizes sizes;  // numbers, kBatch, kLength or kFeatures
    bool is_mask = false;  // only of attention: then its length is part of no plan
};

}  // namespace weightpager

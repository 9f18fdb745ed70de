// Operators that compute each element for itself.
#include <cmath>

#include "families.hpp"
#include "loop.hpp"

namespace weightpager {
namespace {

constexpr int64_t kTranscendental = 8;  // additions that one is worth

// Of rows whose elements lie side by side.
template <Unary Kind>
void run_unary(const Step& step, const Running& running) {
    const float* x = running.data(step.in[0]);
    float* y = running.data(step.out[0]);
    Loop<2>(step.out[0].sizes, {&step.out[0], &step.in[0]})
        .run(running.worth(step.out[0].elements() * kTranscendental), [&](const auto& at, const auto&, int64_t count) {
            running.vectors.unary(Kind, x + at[1], y + at[0], count);
        });
}

template <Unary Kind>
void infer_unary(Inference& inference) {
    inference.expect_type(0, Type::float32);
    // A half of what a layer gives for gate and values together is read where it lies.
    const Sizes sizes = inference.in(0).sizes;
    if (sizes.empty() || sizes.back() == 1)
        inference.dense(0);
    else
        inference.dense_rows(0);
    inference.give(Type::float32, sizes);
    inference.run_by(&run_unary<Kind>);
}

void infer_gelu(Inference& inference) {
    const std::string kind = inference.word("approximate");
    inference.expect(kind == "none" || kind == "tanh", "attribute approximate: expected none or tanh, found ", kind);
    kind == "none" ? infer_unary<Unary::gelu>(inference) : infer_unary<Unary::gelu_tanh>(inference);
}

// Of the C library, for operators that a model hardly uses.
template <float (*Function)(float)>
void run_scalar(const Step& step, const Running& running) {
    const float* x = running.data(step.in[0]);
    float* y = running.data(step.out[0]);
    Loop<2>(step.out[0].sizes, {&step.out[0], &step.in[0]})
        .run(running.worth(step.out[0].elements() * kTranscendental), [&](const auto& at, const auto& by, int64_t count) {
            for (int64_t i = 0; i < count; ++i) y[at[0] + i * by[0]] = Function(x[at[1] + i * by[1]]);
        });
}

template <float (*Function)(float)>
void infer_scalar(Inference& inference) {
    inference.expect_type(0, Type::float32);
    const Sizes sizes = inference.in(0).sizes;
    inference.give(Type::float32, sizes);
    inference.run_by(&run_scalar<Function>);
}

float exponential_of(float x) { return std::exp(x); }
float sine_of(float x) { return std::sin(x); }
float cosine_of(float x) { return std::cos(x); }

void run_negate_int64(const Step& step, const Running& running) {
    const int64_t* x = running.data<int64_t>(step.in[0]);
    int64_t* y = running.data<int64_t>(step.out[0]);
    Loop<2>(step.out[0].sizes, {&step.out[0], &step.in[0]}).run(1, [&](const auto& at, const auto& by, int64_t count) {
        for (int64_t i = 0; i < count; ++i)
            y[at[0] + i * by[0]] = static_cast<int64_t>(0 - static_cast<uint64_t>(x[at[1] + i * by[1]]));
    });
}

void infer_negate(Inference& inference) {
    if (inference.in(0).type != Type::int64) return infer_unary<Unary::negate>(inference);
    const Sizes sizes = inference.in(0).sizes;
    inference.give(Type::int64, sizes);
    inference.run_by(&run_negate_int64);
}

void run_power(const Step& step, const Running& running) {
    const float* x = running.data(step.in[0]);
    float* y = running.data(step.out[0]);
    const float exponent = scalar_of<float>(step);
    Loop<2>(step.out[0].sizes, {&step.out[0], &step.in[0]})
        .run(running.worth(step.out[0].elements() * kTranscendental), [&](const auto& at, const auto& by, int64_t count) {
            for (int64_t i = 0; i < count; ++i) {
                const float value = x[at[1] + i * by[1]];
                y[at[0] + i * by[0]] = exponent == 2.0f ? value * value : std::pow(value, exponent);
            }
        });
}

void infer_power(Inference& inference) {
    inference.expect_type(0, Type::float32);
    inference.number("scalar");
    const Sizes sizes = inference.in(0).sizes;
    inference.give(Type::float32, sizes);
    inference.run_by(&run_power);
}

template <Binary Kind>
void run_floats(const Step& step, const Running& running) {
    const float* x = running.data(step.in[0]);
    const bool two = step.in[1].number >= 0;
    const float scalar = two ? 0.0f : scalar_of<float>(step);
    const float* y = two ? running.data(step.in[1]) : &scalar;
    float* out = running.data(step.out[0]);
    Loop<3>(step.out[0].sizes, {&step.out[0], &step.in[0], two ? &step.in[1] : nullptr})
        .run(running.worth(step.out[0].elements()), [&](const auto& at, const auto& by, int64_t count) {
            if (by[1] <= 1 && by[2] <= 1 && by[1] >= 0 && by[2] >= 0)
                return running.vectors.binary(Kind, x + at[1], static_cast<int>(by[1]), y + at[2], static_cast<int>(by[2]),
                                              out + at[0], count);
            for (int64_t i = 0; i < count; ++i)
                running.vectors.binary(Kind, x + at[1] + i * by[1], 0, y + at[2] + i * by[2], 0, out + at[0] + i, 1);
        });
}

// In unsigned numbers, whose overflow is defined.
template <Binary Kind>
void run_integers(const Step& step, const Running& running) {
    const auto* x = running.data<uint64_t>(step.in[0]);
    const bool two = step.in[1].number >= 0;
    const auto scalar = static_cast<uint64_t>(two ? 0 : scalar_of<int64_t>(step));
    const auto* y = two ? running.data<uint64_t>(step.in[1]) : &scalar;
    auto* out = running.data<uint64_t>(step.out[0]);
    Loop<3>(step.out[0].sizes, {&step.out[0], &step.in[0], two ? &step.in[1] : nullptr})
        .run(running.worth(step.out[0].elements()), [&](const auto& at, const auto& by, int64_t count) {
            for (int64_t i = 0; i < count; ++i) {
                const uint64_t a = x[at[1] + i * by[1]], b = y[at[2] + i * by[2]];
                out[at[0] + i * by[0]] = Kind == Binary::add ? a + b : Kind == Binary::subtract ? a - b : a * b;
            }
        });
}

template <Binary Kind>
void infer_binary(Inference& inference) {
    const Type type = inference.in(0).type;
    inference.expect(type == Type::float32 || (type == Type::int64 && Kind != Binary::divide), "operand 0: expected float32",
                     Kind == Binary::divide ? "" : " or int64", ", found ", inference.in(0));
    expect_second(inference, type);
    const Sizes sizes = inference.has(1) ? broadcast(inference, {0, 1}) : inference.in(0).sizes;
    inference.give(type, sizes);
    inference.run_by(type == Type::float32 ? &run_floats<Kind> : &run_integers<Kind>);
}

}  // namespace

Sizes broadcast(const Inference& inference, const std::vector<size_t>& operands) {
    Sizes found;
    for (size_t operand : operands) {
        const Sizes& sizes = inference.in(operand).sizes;
        if (sizes.size() > found.size()) found.insert(found.begin(), sizes.size() - found.size(), 1);
        for (size_t i = 0; i < sizes.size(); ++i) {
            int64_t& size = found[found.size() - sizes.size() + i];
            if (sizes[i] == size || sizes[i] == 1) continue;
            inference.expect(size == 1, "operand ", operand, ": expected sizes that broadcast to ", found, ", found ",
                             sizes);
            size = sizes[i];
        }
    }
    return found;
}

void expect_second(const Inference& inference, Type type) {
    inference.expect(inference.has(1) != inference.given("scalar"), "expected either a second operand or a scalar");
    if (inference.has(1))
        inference.expect_type(1, type);
    else
        inference.number_of_type("scalar", type);
}

std::vector<Operator> element_operators() {
    return {
        {"add", 1, infer_binary<Binary::add>},
        {"subtract", 1, infer_binary<Binary::subtract>},
        {"multiply", 1, infer_binary<Binary::multiply>},
        {"divide", 1, infer_binary<Binary::divide>},
        {"power", 1, infer_power},
        {"gelu", 1, infer_gelu},
        {"relu", 1, infer_unary<Unary::relu>},
        {"silu", 1, infer_unary<Unary::silu>},
        {"tanh", 1, infer_unary<Unary::tanh>},
        {"sigmoid", 1, infer_unary<Unary::sigmoid>},
        {"negate", 1, infer_negate},
        {"sqrt", 1, infer_unary<Unary::sqrt>},
        {"rsqrt", 1, infer_unary<Unary::rsqrt>},
        {"exp", 1, infer_scalar<exponential_of>},
        {"sin", 1, infer_scalar<sine_of>},
        {"cos", 1, infer_scalar<cosine_of>},
    };
}

}  // namespace weightpager

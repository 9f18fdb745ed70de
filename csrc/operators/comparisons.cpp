// Conditions: comparisons, their combinations, what is chosen by them, and casts.
#include <functional>

#include "families.hpp"
#include "loop.hpp"

namespace weightpager {
namespace {

// Calls `with` with a number of the type.
template <class With>
void typed(Type type, const With& with) {
    if (type == Type::float32)
        with(float{});
    else if (type == Type::int64)
        with(int64_t{});
    else
        with(uint8_t{});
}

template <template <class> class Compare>
void run_comparison(const Step& step, const Running& running) {
    typed(step.in[0].type, [&](auto zero) {
        using T = decltype(zero);
        const bool two = step.in[1].number >= 0;
        const T scalar = two ? T{} : scalar_of<T>(step);
        const T* x = running.data<T>(step.in[0]);
        const T* y = two ? running.data<T>(step.in[1]) : &scalar;
        auto* out = running.data<uint8_t>(step.out[0]);
        Loop<3>(step.out[0].sizes, {&step.out[0], &step.in[0], two ? &step.in[1] : nullptr})
            .run(running.worth(step.out[0].elements()), [&](const auto& at, const auto& by, int64_t count) {
                for (int64_t i = 0; i < count; ++i)
                    out[at[0] + i * by[0]] = Compare<T>()(x[at[1] + i * by[1]], y[at[2] + i * by[2]]) ? 1 : 0;
            });
    });
}

template <template <class> class Compare>
void infer_comparison(Inference& inference) {
    expect_second(inference, inference.in(0).type);
    inference.give(Type::boolean, inference.has(1) ? broadcast(inference, {0, 1}) : Sizes(inference.in(0).sizes));
    inference.run_by(&run_comparison<Compare>);
}

template <template <class> class Combine>
void infer_logical(Inference& inference) {
    inference.expect_type(0, Type::boolean);
    inference.expect_type(1, Type::boolean);
    inference.give(Type::boolean, broadcast(inference, {0, 1}));
    inference.run_by(&run_comparison<Combine>);
}

void run_not(const Step& step, const Running& running) {
    const auto* x = running.data<uint8_t>(step.in[0]);
    auto* out = running.data<uint8_t>(step.out[0]);
    Loop<2>(step.out[0].sizes, {&step.out[0], &step.in[0]}).run(1, [&](const auto& at, const auto& by, int64_t count) {
        for (int64_t i = 0; i < count; ++i) out[at[0] + i * by[0]] = x[at[1] + i * by[1]] == 0 ? 1 : 0;
    });
}

void infer_not(Inference& inference) {
    inference.expect_type(0, Type::boolean);
    inference.give(Type::boolean, Sizes(inference.in(0).sizes));
    inference.run_by(&run_not);
}

void run_where(const Step& step, const Running& running) {
    const auto* condition = running.data<uint8_t>(step.in[0]);
    typed(step.in[1].type, [&](auto zero) {
        using T = decltype(zero);
        const T *x = running.data<T>(step.in[1]), *y = running.data<T>(step.in[2]);
        T* out = running.data<T>(step.out[0]);
        Loop<4>(step.out[0].sizes, {&step.out[0], &step.in[0], &step.in[1], &step.in[2]})
            .run(running.worth(step.out[0].elements()), [&](const auto& at, const auto& by, int64_t count) {
                for (int64_t i = 0; i < count; ++i)
                    out[at[0] + i * by[0]] =
                        condition[at[1] + i * by[1]] != 0 ? x[at[2] + i * by[2]] : y[at[3] + i * by[3]];
            });
    });
}

void infer_where(Inference& inference) {
    inference.expect_type(0, Type::boolean);
    inference.expect_type(2, inference.in(1).type);
    inference.give(inference.in(1).type, broadcast(inference, {0, 1, 2}));
    inference.run_by(&run_where);
}

// What an int64 can't hold becomes the least, as it does on x86-64.
int64_t whole(float value) {
    return value >= -9223372036854775808.0f && value < 9223372036854775808.0f ? static_cast<int64_t>(value) : INT64_MIN;
}

template <class To, class From>
To cast_to(From value, bool condition) {
    if (condition) return static_cast<To>(value != From{} ? 1 : 0);
    if constexpr (std::is_same_v<To, int64_t> && std::is_same_v<From, float>) return whole(value);
    return static_cast<To>(value);
}

void run_cast(const Step& step, const Running& running) {
    const bool condition = step.out[0].type == Type::boolean;
    typed(step.in[0].type, [&](auto from) {
        typed(step.out[0].type, [&](auto to) {
            using From = decltype(from);
            using To = decltype(to);
            const From* x = running.data<From>(step.in[0]);
            To* out = running.data<To>(step.out[0]);
            Loop<2>(step.out[0].sizes, {&step.out[0], &step.in[0]})
                .run(running.worth(step.out[0].elements()), [&](const auto& at, const auto& by, int64_t count) {
                    for (int64_t i = 0; i < count; ++i)
                        out[at[0] + i * by[0]] = cast_to<To, From>(x[at[1] + i * by[1]], condition);
                });
        });
    });
}

void infer_cast(Inference& inference) {
    const std::string name = inference.word("dtype");
    for (Type type : {Type::float32, Type::int64, Type::boolean})
        if (name == text_of(type)) {
            if (type == inference.in(0).type) return inference.give_view(View(inference.in(0)));
            inference.give(type, Sizes(inference.in(0).sizes));
            return inference.run_by(&run_cast);
        }
    inference.fail("attribute dtype: expected float32, int64 or bool, found ", name);
}

template <class T>
struct And {
    bool operator()(T x, T y) const { return x != T{} && y != T{}; }
};

template <class T>
struct Or {
    bool operator()(T x, T y) const { return x != T{} || y != T{}; }
};

}  // namespace

std::vector<Operator> comparison_operators() {
    return {
        {"equal", 1, infer_comparison<std::equal_to>},
        {"not_equal", 1, infer_comparison<std::not_equal_to>},
        {"less", 1, infer_comparison<std::less>},
        {"less_equal", 1, infer_comparison<std::less_equal>},
        {"greater", 1, infer_comparison<std::greater>},
        {"greater_equal", 1, infer_comparison<std::greater_equal>},
        {"logical_and", 1, infer_logical<And>},
        {"logical_or", 1, infer_logical<Or>},
        {"logical_not", 1, infer_not},
        {"where", 1, infer_where},
        {"cast", 1, infer_cast},
    };
}

}  // namespace weightpager

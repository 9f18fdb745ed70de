// Operators that look at each element for itself.
#pragma once

#include "simd.hpp"
#include "vectors.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

template <Unary Kind>
void apply_to(const float* x, float* y, int64_t count) {
    by_registers(
        count, [&](int64_t at) WEIGHTPAGER_INLINED { store_floats(y + at, applied<Kind, kLanes>(load_floats(x + at))); },
        [&](int64_t at, int64_t left) WEIGHTPAGER_INLINED {
            store_part(y + at, applied<Kind, kLanes>(load_part(x + at, left)), left);
        });
}

void unary(Unary kind, const float* x, float* y, int64_t count) {
    switch (kind) {
        case Unary::none: return apply_to<Unary::none>(x, y, count);
        case Unary::gelu: return apply_to<Unary::gelu>(x, y, count);
        case Unary::gelu_tanh: return apply_to<Unary::gelu_tanh>(x, y, count);
        case Unary::relu: return apply_to<Unary::relu>(x, y, count);
        case Unary::silu: return apply_to<Unary::silu>(x, y, count);
        case Unary::tanh: return apply_to<Unary::tanh>(x, y, count);
        case Unary::quick_gelu: return apply_to<Unary::quick_gelu>(x, y, count);
        case Unary::sigmoid: return apply_to<Unary::sigmoid>(x, y, count);
        case Unary::negate: return apply_to<Unary::negate>(x, y, count);
        case Unary::sqrt: return apply_to<Unary::sqrt>(x, y, count);
        case Unary::rsqrt: return apply_to<Unary::rsqrt>(x, y, count);
    }
}

template <Binary Kind, class T>
WEIGHTPAGER_INLINE T combine(T x, T y) {
    if constexpr (Kind == Binary::add) return x + y;
    if constexpr (Kind == Binary::subtract) return x - y;
    if constexpr (Kind == Binary::multiply) return x * y;
    return x / y;
}

template <Binary Kind>
void combine_all(const float* x, int x_step, const float* y, int y_step, float* out, int64_t count) {
    const Float every_x = Float{} + x[0], every_y = Float{} + y[0];
    int64_t at = 0;
    for (; at + kLanes <= count; at += kLanes) {
        const Float a = x_step == 0 ? every_x : load_floats(x + at), b = y_step == 0 ? every_y : load_floats(y + at);
        store_floats(out + at, combine<Kind>(a, b));
    }
    for (; at < count; ++at) out[at] = combine<Kind>(x[at * x_step], y[at * y_step]);
}

void binary(Binary kind, const float* x, int x_step, const float* y, int y_step, float* out, int64_t count) {
    if (count == 0) return;
    switch (kind) {
        case Binary::add: return combine_all<Binary::add>(x, x_step, y, y_step, out, count);
        case Binary::subtract: return combine_all<Binary::subtract>(x, x_step, y, y_step, out, count);
        case Binary::multiply: return combine_all<Binary::multiply>(x, x_step, y, y_step, out, count);
        case Binary::divide: return combine_all<Binary::divide>(x, x_step, y, y_step, out, count);
    }
}

}  // namespace
}  // namespace weightpager

// Functions of N numbers at once.
#pragma once

#include "lanes.hpp"
#include "unary.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

template <int N>
using Floats = typename Lanes<N>::Float;

template <int N>
WEIGHTPAGER_INLINE Floats<N> absolute(Floats<N> x) {
    return reinterpret_cast<Floats<N>>(reinterpret_cast<typename Lanes<N>::Bits>(x) & 0x7fffffffu);
}

// A number that isn't negative, with the sign of another.
template <int N>
WEIGHTPAGER_INLINE Floats<N> signed_as(Floats<N> magnitude, Floats<N> sign) {
    using Bits = typename Lanes<N>::Bits;
    return reinterpret_cast<Floats<N>>(reinterpret_cast<Bits>(magnitude) | (reinterpret_cast<Bits>(sign) & 0x80000000u));
}

template <int N>
WEIGHTPAGER_INLINE Floats<N> sigmoid(Floats<N> x) {
    return 1.0f / (1.0f + exponential<N>(-x));
}

// Near 0 a polynomial, as in Cephes' tanhf: 1 - 2 / (e^2x + 1) would lose digits there.
template <int N>
WEIGHTPAGER_INLINE Floats<N> hyperbolic_tangent(Floats<N> x) {
    const Floats<N> far = absolute<N>(x), square = x * x;
    Floats<N> series = Floats<N>{} - 5.70498872745e-3f;
    for (float next : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f})
        series = series * square + next;
    const Floats<N> near = x + x * square * series;
    const Floats<N> wide = 1.0f - 2.0f / (exponential<N>(far + far) + 1.0f);
    return far < 0.625f ? near : signed_as<N>(wide, x);
}

// A quotient of polynomials, as in Eigen's erf of floats: within 3e-7. Beyond 4 it is 1.
template <int N>
WEIGHTPAGER_INLINE Floats<N> error_function(Floats<N> x) {
    x = x > 4.0f ? Floats<N>{} + 4.0f : x;
    x = x < -4.0f ? Floats<N>{} - 4.0f : x;
    const Floats<N> square = x * x;
    Floats<N> above = Floats<N>{} - 2.72614225801306e-10f, below = Floats<N>{} - 1.45660718464996e-05f;
    for (float next : {2.77068142495902e-08f, -2.10102402082508e-06f, -5.69250639462346e-05f, -7.34990630326855e-04f,
                       -2.95459980854025e-03f, -1.60960333262415e-02f})
        above = above * square + next;
    for (float next : {-2.13374055278905e-04f, -1.68282697438203e-03f, -7.37332916720468e-03f, -1.42647390514189e-02f})
        below = below * square + next;
    return x * above / below;
}

template <Unary Kind, int N>
WEIGHTPAGER_INLINE Floats<N> applied(Floats<N> x) {
    constexpr float kRootOfHalf = 0.70710678f, kRootOfTwoByPi = 0.7978845608f;
    if constexpr (Kind == Unary::gelu) return 0.5f * x * (1.0f + error_function<N>(kRootOfHalf * x));
    if constexpr (Kind == Unary::gelu_tanh) return x * sigmoid<N>(2.0f * kRootOfTwoByPi * (x + 0.044715f * x * x * x));
    if constexpr (Kind == Unary::relu) return x < 0.0f ? Floats<N>{} : x;
    if constexpr (Kind == Unary::silu) return x * sigmoid<N>(x);
    if constexpr (Kind == Unary::tanh) return hyperbolic_tangent<N>(x);
    if constexpr (Kind == Unary::quick_gelu) return x * sigmoid<N>(1.702f * x);
    if constexpr (Kind == Unary::sigmoid) return sigmoid<N>(x);
    if constexpr (Kind == Unary::negate) return -x;
    if constexpr (Kind == Unary::sqrt || Kind == Unary::rsqrt) {
        unroll<N>([&](auto i) WEIGHTPAGER_INLINED { x[decltype(i)::value] = __builtin_sqrtf(x[decltype(i)::value]); });
        return Kind == Unary::sqrt ? x : 1.0f / x;
    }
    return x;
}

// What a layer does with its outputs.
template <int N>
Floats<N> finished(Unary kind, Floats<N> x) {
    switch (kind) {
        case Unary::gelu: return applied<Unary::gelu, N>(x);
        case Unary::gelu_tanh: return applied<Unary::gelu_tanh, N>(x);
        case Unary::relu: return applied<Unary::relu, N>(x);
        case Unary::silu: return applied<Unary::silu, N>(x);
        case Unary::tanh: return applied<Unary::tanh, N>(x);
        case Unary::quick_gelu: return applied<Unary::quick_gelu, N>(x);
        default: return x;
    }
}

}  // namespace
}  // namespace weightpager

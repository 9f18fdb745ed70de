#pragma once

namespace weightpager {

// Functions of one number; up to quick_gelu what a layer may do with its outputs.
enum class Unary : int { none, gelu, gelu_tanh, relu, silu, tanh, quick_gelu, sigmoid, negate, sqrt, rsqrt };

}  // namespace weightpager

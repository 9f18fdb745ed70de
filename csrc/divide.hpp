#pragma once

namespace weightpager {
namespace {  // see bfloat16.hpp

// a / b, rounded up.
template <class A, class B>
constexpr auto divide_up(A a, B b) {
    return (a + b - 1) / b;
}

}  // namespace
}  // namespace weightpager

// Lanes of two vectors in another order.
#pragma once

#include "lanes.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

// As lanes of `a` and of `b`, whose lanes count on from those of `a`.
template <int... I, class V>
WEIGHTPAGER_INLINE V shuffle(V a, V b) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    using Places = decltype(a == b);  // whole numbers as wide as the lanes
    return __builtin_shuffle(a, b, Places{I...});
#endif
}

}  // namespace
}  // namespace weightpager

// Memory that crosses the border to Python as an address.
#pragma once

#include <cstdint>

namespace weightpager {

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace weightpager

// Compiled once per instruction set, with WEIGHTPAGER_VECTORS (the symbol to define), WEIGHTPAGER_NAME and WEIGHTPAGER_LANES
// (floats in a register) set by the build. As in kernel.cpp, nothing here but that symbol may have external linkage.

#include "attention.hpp"
#include "dense.hpp"
#include "elements.hpp"
#include "norms.hpp"
#include "text.hpp"
#include "vectors.hpp"

namespace weightpager {

extern const Vectors WEIGHTPAGER_VECTORS;
const Vectors WEIGHTPAGER_VECTORS = {WEIGHTPAGER_TEXT(WEIGHTPAGER_NAME), unary, binary, norm, softmax, dense, attend};

}  // namespace weightpager

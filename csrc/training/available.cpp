#include <string>

#include "../paged_linear.hpp"
#include "products.hpp"

namespace weightpager {
namespace {

std::vector<const Products*> find_products() {
    std::vector<const Products*> found;
    for ([[maybe_unused]] const Kernel* kernel : kernels()) {
        [[maybe_unused]] const std::string name = kernel->name;
#if defined(WEIGHTPAGER_AVX512_BF16)
        if (name == products_avx512_bf16.name) found.push_back(&products_avx512_bf16);
#elif defined(WEIGHTPAGER_NEON_BF16)
        if (name == products_neon_bf16.name) found.push_back(&products_neon_bf16);
#endif
    }
    found.push_back(&products_generic);
    return found;
}

}  // namespace

const std::vector<const Products*>& products() {
    static const std::vector<const Products*> found = find_products();
    return found;
}

}  // namespace weightpager

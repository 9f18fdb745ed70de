#include <cstring>

#include "../linear/paged_linear.hpp"
#include "products.hpp"

namespace weightpager {
namespace {

constexpr const Products* kCompiled[] = {
#if defined(WEIGHTPAGER_AVX512_BF16)
    &products_avx512_bf16,
#endif
#if defined(WEIGHTPAGER_X86)
    &products_avx512, &products_avx2,
#elif defined(__aarch64__)
#if defined(WEIGHTPAGER_NEON_BF16)
    &products_neon_bf16,
#endif
    &products_neon,
#endif
    &products_generic,
};

std::vector<const Products*> find_products() {
    std::vector<const Products*> found;
    for (const Kernel* kernel : kernels())
        for (const Products* one : kCompiled)
            if (std::strcmp(kernel->name, one->name) == 0) found.push_back(one);
    return found;
}

}  // namespace

const std::vector<const Products*>& products() {
    static const std::vector<const Products*> found = find_products();
    return found;
}

}  // namespace weightpager

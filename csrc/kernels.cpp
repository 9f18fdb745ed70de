#include "paged_linear.hpp"

namespace weightpager {

extern const Kernel generic;
#if defined(WEIGHTPAGER_X86)
extern const Kernel avx2, avx512;
#elif defined(__aarch64__)
extern const Kernel neon;
#endif

namespace {

std::vector<const Kernel*> find_kernels() {
    std::vector<const Kernel*> found;
#if defined(WEIGHTPAGER_X86)
    // These also ask whether the operating system saves the registers (XGETBV), which a processor flag alone won't say.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        found.push_back(&avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2);
#elif defined(__aarch64__)
    found.push_back(&neon);
#endif
    found.push_back(&generic);
    return found;
}

}  // namespace

const std::vector<const Kernel*>& kernels() {
    static const std::vector<const Kernel*> found = find_kernels();
    return found;
}

}  // namespace weightpager

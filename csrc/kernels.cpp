#include "paged_linear.hpp"

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace weightpager {

extern const Kernel generic;
#if defined(WEIGHTPAGER_X86)
extern const Kernel avx2, avx512, avx512_bf16;
#elif defined(__aarch64__)
extern const Kernel neon, neon_bf16;
#endif

namespace {

#if defined(__aarch64__)
constexpr unsigned long kBfloat16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
#endif

std::vector<const Kernel*> find_kernels() {
    std::vector<const Kernel*> found;
#if defined(WEIGHTPAGER_X86)
    // These also ask whether the operating system saves the registers (XGETBV), which a processor flag alone won't say.
    __builtin_cpu_init();
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl");
    if (wide && __builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16);
    if (wide) found.push_back(&avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2);
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP2) & kBfloat16) found.push_back(&neon_bf16);
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

#include "paged_linear.hpp"
#include "processor.hpp"

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif
#if defined(WEIGHTPAGER_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace weightpager {

extern const Kernel generic;
#if defined(WEIGHTPAGER_X86)
extern const Kernel avx2, avx512;
#if defined(WEIGHTPAGER_AVX512_BF16)
extern const Kernel avx512_bf16;
#endif
#if defined(WEIGHTPAGER_AMX)
extern const Kernel amx_bf16;
#endif
#elif defined(__aarch64__)
extern const Kernel neon, neon_dot;
#if defined(WEIGHTPAGER_NEON_BF16)
extern const Kernel neon_bf16;
#endif
#endif

namespace {

#if defined(__aarch64__)
constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
#if defined(WEIGHTPAGER_NEON_BF16)
constexpr unsigned long kBfloat16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
#endif
#endif

#if defined(WEIGHTPAGER_EMULATED_TILES)
bool may_use_tiles() { return true; }
#elif defined(WEIGHTPAGER_AMX)
// Linux lends the tile registers' state to a process only on request, for all threads that it starts from then on and
// those that it has.
bool may_use_tiles() {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    return processor().amx_bf16 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

std::vector<const Kernel*> find_kernels() {
    std::vector<const Kernel*> found;
#if defined(WEIGHTPAGER_X86)
    const Processor& has = processor();
    const bool wide = has.avx512f && has.avx512bw && has.avx512vl;
#if defined(WEIGHTPAGER_AVX512_BF16)
    const bool pairs = wide && has.avx512bf16 && has.avx512vnni;
#if defined(WEIGHTPAGER_AMX)
    if (pairs && may_use_tiles()) found.push_back(&amx_bf16);
#endif
    if (pairs) found.push_back(&avx512_bf16);
#endif
    if (wide) found.push_back(&avx512);
    if (has.avx2 && has.fma) found.push_back(&avx2);
#elif defined(__aarch64__)
    const bool dots = getauxval(AT_HWCAP) & kDotProduct;
#if defined(WEIGHTPAGER_NEON_BF16)
    if (dots && getauxval(AT_HWCAP2) & kBfloat16) found.push_back(&neon_bf16);
#endif
    if (dots) found.push_back(&neon_dot);
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

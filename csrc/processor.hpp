// Which vector instructions the processor has and the operating system lets a process use. Asked of the processor itself:
// __builtin_cpu_supports answers no to everything in what Zig's compiler builds.
#pragma once

#if defined(WEIGHTPAGER_X86)
#include <cpuid.h>

#include <cstdint>

namespace weightpager {

struct Processor {
    bool avx2 = false, fma = false, f16c = false;
    bool avx512f = false, avx512bw = false, avx512vl = false, avx512vnni = false, avx512bf16 = false;
    bool amx_bf16 = false;  // of the processor alone: Linux lends tiles on request
};

inline Processor find_processor() {
    const auto bit = [](unsigned bits, int number) { return (bits >> number & 1) != 0; };
    Processor found;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return found;  // OSXSAVE: XGETBV is there
    const bool fma = bit(c, 12), f16c = bit(c, 29);
    uint32_t saved, unused;  // XCR0: whose registers are saved when threads change
    __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
    constexpr uint32_t kAvx = 0x6, kAvx512 = 0xe6;
    if ((saved & kAvx) != kAvx || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    const unsigned subleaves = a;
    found.fma = fma;
    found.f16c = f16c;
    found.avx2 = bit(b, 5);
    found.amx_bf16 = bit(d, 24) && bit(d, 22);  // AMX-TILE and AMX-BF16
    if ((saved & kAvx512) != kAvx512) return found;
    found.avx512f = bit(b, 16);
    found.avx512bw = bit(b, 30);
    found.avx512vl = bit(b, 31);
    found.avx512vnni = bit(c, 11);
    if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx512bf16 = bit(a, 5);
    return found;
}

inline const Processor& processor() {
    static const Processor found = find_processor();
    return found;
}

}  // namespace weightpager
#endif

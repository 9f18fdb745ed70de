#include "vectors.hpp"

namespace weightpager {

extern const Vectors vectors_generic;
#if defined(WEIGHTPAGER_X86)
extern const Vectors vectors_avx2, vectors_avx512;
#elif defined(__aarch64__)
extern const Vectors vectors_neon;
#endif

namespace {

std::vector<const Vectors*> find_vectors() {
    std::vector<const Vectors*> found;
#if defined(WEIGHTPAGER_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        found.push_back(&vectors_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&vectors_avx2);
#elif defined(__aarch64__)
    found.push_back(&vectors_neon);
#endif
    found.push_back(&vectors_generic);
    return found;
}

bool begins(const std::string& text, const std::string& with) { return text.compare(0, with.size(), with) == 0; }

}  // namespace

const std::vector<const Vectors*>& vectors() {
    static const std::vector<const Vectors*> found = find_vectors();
    return found;
}

const Vectors& vectors_for(const std::string& kernel) {
    // Kernels for newer instructions are named after those that they go beyond; "amx_bf16" needs AVX-512.
    for (const Vectors* each : vectors())
        if (begins(kernel, each->name) || begins(kernel, "amx")) return *each;
    return *vectors().back();
}

}  // namespace weightpager

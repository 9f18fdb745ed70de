#include "vectors.hpp"

#include "processor.hpp"

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
    const Processor& has = processor();
    if (has.avx512f && has.avx512bw && has.avx512vl) found.push_back(&vectors_avx512);
    if (has.avx2 && has.fma && has.f16c) found.push_back(&vectors_avx2);
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

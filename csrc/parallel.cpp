#include "parallel.hpp"

#if defined(__linux__) && !defined(WEIGHTPAGER_NATIVE_TESTS)
#define WEIGHTPAGER_LOOKS_FOR_TORCH
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <string>
#endif

namespace weightpager {
namespace {

// libgomp's stable entry point, what a compiler emits for `#pragma omp parallel`; LLVM's libomp has it too.
using GompParallel = void (*)(Region region, void* data, unsigned threads, unsigned flags);

#if defined(WEIGHTPAGER_LOOKS_FOR_TORCH)

bool is_torch(const char* path) {
    const char* slash = std::strrchr(path, '/');
    const char* file = slash == nullptr ? path : slash + 1;
    return std::strncmp(file, "libtorch_cpu.so", 15) == 0;
}

int visit_library(dl_phdr_info* library, size_t, void* torch) {
    if (library->dlpi_name == nullptr || !is_torch(library->dlpi_name)) return 0;
    *static_cast<std::string*>(torch) = library->dlpi_name;
    return 1;
}

// A process may hold several OpenMP runtimes (scikit-learn brings its own): look the symbol up through torch's
// library, which searches that library's own dependencies.
GompParallel find_gomp() {
    std::string torch;
    dl_iterate_phdr(visit_library, &torch);
    if (torch.empty()) return nullptr;
    // Not during the walk, which holds a lock that a thread that is loading a library waits for, as we would for its.
    void* library = dlopen(torch.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    return library == nullptr ? nullptr : reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
}

#else

GompParallel find_gomp() { return nullptr; }

#endif

GompParallel gomp() {
    static const GompParallel found = find_gomp();
    return found;
}

}  // namespace

bool have_openmp() { return gomp() != nullptr; }

void run_region(int threads, Region region, void* data) {
    // One thread never enters torch's runtime: after a fork, its threads are gone and it would wait for them.
    if (threads > 1 && have_openmp())
        gomp()(region, data, static_cast<unsigned>(threads), 0);
    else
        run_on_pool(threads, region, data);
}

}  // namespace weightpager

// Tests of the kernels without Python, so that sanitizers and emulators can run them. Exit code 1 if one fails, 2 for
// wrong usage.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "check.hpp"
#include "integers.hpp"
#include "linear/paged_linear.hpp"
#include "products.hpp"
#include "programs.hpp"
#include "test_case.hpp"
#include "vectors.hpp"

#if defined(WEIGHTPAGER_TRAPPED_TILES)
#include "tile_traps.hpp"

namespace weightpager {
extern const Kernel amx_bf16;
}
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace {

constexpr int kMostFailures = 10;  // after so many, more would tell nothing new

struct Options {
    int64_t first = 0, cases = kFullRound;
    std::string kernel;  // empty: all
};

[[noreturn]] void refuse() {
    std::cerr << "usage: native_tests [--first NUMBER] [--cases COUNT] [--kernel NAME]\n";
    std::exit(2);
}

int64_t number(const std::string& text) {
    if (text.empty() || text.size() > 12 || text.find_first_not_of("0123456789") != std::string::npos) refuse();
    return std::stoll(text);
}

Options parse(int count, char** arguments) {
    Options options;
    for (int i = 1; i < count; i += 2) {
        const std::string name = arguments[i];
        if (i + 1 == count) refuse();
        if (name == "--first")
            options.first = number(arguments[i + 1]);
        else if (name == "--cases")
            options.cases = number(arguments[i + 1]);
        else if (name == "--kernel")
            options.kernel = arguments[i + 1];
        else
            refuse();
    }
    return options;
}

// Of this machine; with those whose instructions are carried out in software where it lacks them.
std::vector<const weightpager::Kernel*> all() {
    std::vector<const weightpager::Kernel*> kernels = weightpager::kernels();
#if defined(WEIGHTPAGER_TRAPPED_TILES)
    if (kernels[0]->name == std::string("avx512_bf16")) {
        trap_tiles();
        kernels.insert(kernels.begin(), &weightpager::amx_bf16);
    }
#endif
    return kernels;
}

std::vector<const weightpager::Kernel*> chosen(const std::string& name) {
    std::vector<const weightpager::Kernel*> kernels;
    for (const auto* kernel : all())
        if (name.empty() || name == kernel->name) kernels.push_back(kernel);
    return kernels;
}

// A sanitizer ends the process and doesn't know which case it was.
int64_t running = 0;

void name_case_on_death() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_set_death_callback([] { std::cerr << "case " << running << ": ended by a sanitizer" << std::endl; });
#endif
}

bool passes(int64_t number, const std::vector<const weightpager::Kernel*>& kernels) {
    running = number;
    const std::vector<std::string> found = mistakes(number, kernels);
    for (const std::string& mistake : found) std::cout << "case " << number << ": " << mistake << "\n";
    return found.empty();
}

// Whole numbers, what training multiplies by, operators of each instruction set, and programs of them.
int part_failures(int64_t cases, const std::vector<const weightpager::Kernel*>& kernels) {
    std::vector<std::string> found = integer_mistakes(100 * cases);
    for (const auto* products : weightpager::products()) {
        const std::vector<std::string> mistakes = product_mistakes(*products, cases);
        found.insert(found.end(), mistakes.begin(), mistakes.end());
    }
    for (const auto* kernel : kernels) {
        const std::vector<std::string> mistakes[] = {vector_mistakes(weightpager::vectors_for(kernel->name), cases),
                                                     program_mistakes(*kernel, 10 * cases)};
        for (const auto& each : mistakes) found.insert(found.end(), each.begin(), each.end());
    }
    for (const std::string& mistake : found) std::cout << mistake << "\n";
    return static_cast<int>(found.size());
}

}  // namespace

int main(int count, char** arguments) {
    const Options options = parse(count, arguments);
    const std::vector<const weightpager::Kernel*> kernels = chosen(options.kernel);
    if (kernels.empty()) {
        std::cerr << "kernel: this machine can't run '" << options.kernel << "'\n";
        return 2;
    }
    std::cout << "kernels:";
    for (const auto* kernel : kernels) std::cout << " " << kernel->name;
    std::cout << std::endl;

    name_case_on_death();
    constexpr int64_t kMostOperatorCases = 100;
    int failures = part_failures(std::min(options.cases, kMostOperatorCases), kernels);
    int64_t at = options.first;
    for (; at < options.first + options.cases && failures < kMostFailures; ++at) failures += !passes(at, kernels);
    std::cout << at - options.first << " cases, " << failures << " failed" << std::endl;
    if (failures != 0) std::cout << "one case again: native_tests --first NUMBER --cases 1" << std::endl;
    return failures == 0 ? 0 : 1;
}

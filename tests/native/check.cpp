#include "check.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "paged_weight.hpp"
#include "random.hpp"
#include "test_case.hpp"
#include "values.hpp"

using namespace weightpager;

namespace {

constexpr int kThreads[] = {1, 2, 5};

// Of the result, and for every element what rounding may amount to: the sum of the products' magnitudes.
struct Expected {
    std::vector<double> y, magnitude;  // [tokens, out_features]
};

std::vector<double> read_values(const std::vector<uint8_t>& from, Dtype dtype) {
    const size_t bytes = static_cast<size_t>(element_bytes(dtype));
    std::vector<double> values(from.size() / bytes);
    for (size_t i = 0; i < values.size(); ++i) values[i] = read_value(from.data() + i * bytes, dtype);
    return values;
}

// A case, its operands and the right answer.
class Trial {
   public:
    explicit Trial(int64_t number)
        : random_(static_cast<uint64_t>(number)),
          test_(test_case(number, random_)),
          weight_(test_, random_),
          x_(random_values(test_.tokens * test_.in_features, test_.dtype, random_)),
          bias_(random_values(test_.bias ? test_.out_features : 0, bias_dtype(), random_)) {
        multiply();
    }

    void check(const Kernel& kernel) {
        std::vector<uint8_t> first;
        for (int threads : kThreads) {
            kernel_ = std::string(kernel.name) + " on " + std::to_string(threads) + " threads";
            const std::vector<uint8_t> y = run(kernel, threads, kAllResident);
            compare(y);
            if (threads == kThreads[0]) first = y;
            if (y != first) report("the result depends on the number of threads");
            check_absent_page(kernel, threads);
        }
    }

    const std::vector<std::string>& mistakes() const { return mistakes_; }

   private:
    Dtype bias_dtype() const { return test_.bias.value_or(Dtype::float32); }

    void multiply() {
        const std::vector<double> x = read_values(x_, test_.dtype), bias = read_values(bias_, bias_dtype());
        for (int64_t token = 0; token < test_.tokens; ++token)
            for (int64_t output = 0; output < test_.out_features; ++output) {
                const double* a = x.data() + token * test_.in_features;
                const double* b = weight_.dense().data() + output * test_.in_features;
                double sum = test_.bias ? bias[static_cast<size_t>(output)] : 0, magnitude = std::abs(sum);
                for (int64_t input = 0; input < test_.in_features; ++input) {
                    sum += a[input] * b[input];
                    magnitude += std::abs(a[input] * b[input]);
                }
                expected_.y.push_back(sum);
                expected_.magnitude.push_back(magnitude);
            }
    }

    // The result starts as NaN, so that what isn't written shows.
    std::vector<uint8_t> run(const Kernel& kernel, int threads, int64_t missing) {
        const int64_t bytes = test_.tokens * test_.out_features * element_bytes(test_.dtype);
        std::vector<uint8_t> y(static_cast<size_t>(bytes), 0xff);
        Problem problem = weight_.problem();
        problem.x = x_.data();
        problem.y = y.data();
        problem.dtype = test_.dtype;
        problem.tokens = test_.tokens;
        problem.bias = test_.bias ? bias_.data() : nullptr;
        problem.bias_dtype = bias_dtype();
        const int64_t found = paged_linear(kernel, problem, threads);
        if (found != missing)
            report("expected page " + std::to_string(missing) + " to be missing, got " + std::to_string(found));
        return y;
    }

    double limit() const {
        if (test_.dtype == Dtype::float32) return 1e-5;
        return test_.weight_dtype == Dtype::int8 ? 2e-2 : 1e-2;
    }

    // By the norm, and element by element: one that is wrong hardly shows in the norm of many.
    void compare(const std::vector<uint8_t>& got) {
        const std::vector<double> y = read_values(got, test_.dtype);
        double error_squares = 0, squares = 0;
        size_t wrong = y.size();
        for (size_t i = 0; i < y.size(); ++i) {
            const double error = std::abs(y[i] - expected_.y[i]);
            error_squares += error * error;
            squares += expected_.y[i] * expected_.y[i];
            if (wrong == y.size() && !(error <= limit() * expected_.magnitude[i])) wrong = i;
        }
        if (wrong != y.size()) report_element(static_cast<int64_t>(wrong), y[wrong], expected_.y[wrong]);
        if (const double relative = std::sqrt(error_squares / squares); squares != 0 && !(relative <= limit()))
            report("relative error " + text(relative) + ", expected " + text(limit()) + " at most");
    }

    // Any entry outside the slots means absent. Without tokens nothing is read, so nothing is missed.
    void check_absent_page(const Kernel& kernel, int threads) {
        if (weight_.kept() == 0) return;
        constexpr int32_t lowest = std::numeric_limits<int32_t>::min(), highest = std::numeric_limits<int32_t>::max();
        const int64_t page = weight_.page_of(random_.below(weight_.kept()));
        const int32_t absent = random_.any<int32_t>({-1, lowest, highest, static_cast<int32_t>(weight_.slots())});
        const int32_t slot = weight_.replace_slot(page, absent);
        run(kernel, threads, test_.tokens == 0 ? kAllResident : page);
        weight_.replace_slot(page, slot);
    }

    static std::string text(double number) {
        std::ostringstream stream;
        stream << number;
        return stream.str();
    }

    void report_element(int64_t at, double got, double expected) {
        report("token " + std::to_string(at / test_.out_features) + ", output " +
               std::to_string(at % test_.out_features) + ": expected " + text(expected) + ", got " + text(got));
    }

    void report(const std::string& what) { mistakes_.push_back(kernel_ + ": " + what + "; " + describe(test_)); }

    Random random_;
    TestCase test_;
    PagedWeight weight_;
    std::vector<uint8_t> x_, bias_;
    Expected expected_;
    std::string kernel_;
    std::vector<std::string> mistakes_;
};

}  // namespace

std::vector<std::string> mistakes(int64_t number, const std::vector<const Kernel*>& kernels) {
    Trial trial(number);
    for (const Kernel* kernel : kernels) trial.check(*kernel);
    return trial.mistakes();
}

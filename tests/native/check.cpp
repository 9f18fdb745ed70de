#include "check.hpp"

#include <cmath>
#include <limits>
#include <optional>
#include <sstream>

#include "paged_weight.hpp"
#include "random.hpp"
#include "test_case.hpp"
#include "values.hpp"

using namespace weightpager;

namespace {

constexpr int kThreads[] = {1, 3};
constexpr int64_t kOneGatedIn = 3;

// The result, and for every element what rounding is measured by: for a product, the sum of its terms' magnitudes.
struct Expected {
    std::vector<double> y, magnitude;  // [tokens, out_features]
};

std::vector<double> read_values(const std::vector<uint8_t>& from, Dtype dtype) {
    const size_t bytes = static_cast<size_t>(element_bits(dtype) / 8);
    std::vector<double> values(from.size() / bytes);
    for (size_t i = 0; i < values.size(); ++i) values[i] = read_value(from.data() + i * bytes, dtype);
    return values;
}

std::string text(double number) {
    std::ostringstream stream;
    stream << number;
    return stream.str();
}

// One weight of a case with its bias.
class Layer {
   public:
    Layer(const TestCase& test, Random& random)
        : test_(test),
          weight_(test, random),
          bias_(random_values(test.bias ? test.out_features : 0, bias_dtype(), random)) {}

    PagedWeight& weight() { return weight_; }

    Problem problem(const std::vector<uint8_t>& x) const {
        return {weight_.matrix(), x.data(), nullptr, test_.dtype, test_.tokens, test_.bias ? bias_.data() : nullptr,
                bias_dtype()};
    }

    Expected product(const std::vector<uint8_t>& activations) const {
        const std::vector<double> x = read_values(activations, test_.dtype), bias = read_values(bias_, bias_dtype());
        Expected expected;
        for (int64_t token = 0; token < test_.tokens; ++token)
            for (int64_t output = 0; output < test_.out_features; ++output) {
                const double* a = x.data() + token * test_.in_features;
                const double* b = weight_.dense().data() + output * test_.in_features;
                double sum = test_.bias ? bias[static_cast<size_t>(output)] : 0, magnitude = std::abs(sum);
                for (int64_t input = 0; input < test_.in_features; ++input) {
                    sum += a[input] * b[input];
                    magnitude += std::abs(a[input] * b[input]);
                }
                expected.y.push_back(sum);
                expected.magnitude.push_back(magnitude);
            }
        return expected;
    }

   private:
    Dtype bias_dtype() const { return test_.bias.value_or(Dtype::float32); }

    TestCase test_;
    PagedWeight weight_;
    std::vector<uint8_t> bias_;
};

double activated(double x, Unary activation) {
    if (activation == Unary::silu) return x / (1 + std::exp(-x));
    constexpr double kRootOfTwoByPi = 0.79788456080286536;
    return x / 2 * (1 + std::tanh(kRootOfTwoByPi * (x + 0.044715 * x * x * x)));
}

// An error of the gate is multiplied with the slope of the activation, below 1.2, and the other factor; and conversely.
Expected gated(const Expected& gate, const Expected& other, Unary activation) {
    Expected result;
    for (size_t i = 0; i < gate.y.size(); ++i) {
        const double factor = activated(gate.y[i], activation), y = factor * other.y[i];
        result.y.push_back(y);
        result.magnitude.push_back(1.2 * gate.magnitude[i] * std::abs(other.y[i]) +
                                   std::abs(factor) * other.magnitude[i] + std::abs(y));
    }
    return result;
}

// A case, its operands and the right answer.
class Trial {
   public:
    explicit Trial(int64_t number)
        : random_(static_cast<uint64_t>(number)),
          test_(test_case(number, random_)),
          x_(random_values(test_.tokens * test_.in_features, test_.dtype, random_)),
          layer_(test_, random_),
          expected_(layer_.product(x_)) {
        if (!random_.one_in(kOneGatedIn)) return;
        gate_.emplace(test_, random_);
        activation_ = random_.one_in(2) ? Unary::silu : Unary::gelu_tanh;
        expected_ = gated(gate_->product(x_), expected_, activation_);
    }

    void check(const Kernel& kernel) {
        std::vector<uint8_t> first;
        for (int threads : kThreads) {
            calling_ = std::string(kernel.name) + " on " + std::to_string(threads) + " threads";
            const std::vector<uint8_t> y = run(kernel, threads, kAllResident);
            compare(y);
            if (threads == kThreads[0]) first = y;
            if (y != first) report("the result depends on the number of threads");
            check_absent_page(kernel, threads, layer_.weight());
            if (gate_) check_absent_page(kernel, threads, gate_->weight());
        }
        check_tokens_alone(kernel, first);
    }

    const std::vector<std::string>& mistakes() const { return mistakes_; }

   private:
    // The result starts as NaN, so that what isn't written shows.
    std::vector<uint8_t> run(const Kernel& kernel, int threads, int64_t missing) {
        const int64_t bytes = test_.tokens * test_.out_features * element_bits(test_.dtype) / 8;
        std::vector<uint8_t> y(static_cast<size_t>(bytes), 0xff);
        Problem problem = layer_.problem(x_);
        problem.y = y.data();
        const int64_t found = gate_ ? paged_gated(kernel, gate_->problem(x_), problem, activation_, threads)
                                    : paged_linear(kernel, problem, threads);
        if (found != missing)
            report("expected page " + std::to_string(missing) + " to be missing, got " + std::to_string(found));
        return y;
    }

    // Where weights are whole numbers, and activations float32, a token's outputs are the same bits with any others.
    void check_tokens_alone(const Kernel& kernel, const std::vector<uint8_t>& together) {
        if (!scaled(test_.weight_dtype) || test_.dtype != Dtype::float32) return;
        for (int64_t first = 0; first < test_.tokens;) {
            const int64_t count = std::min<int64_t>(test_.tokens - first, random_.any<int64_t>({1, 1, 2, 3, 7}));
            const size_t row = static_cast<size_t>(test_.out_features) * sizeof(float);
            std::vector<uint8_t> y(static_cast<size_t>(count) * row, 0xff);
            const auto part = [&](Problem problem) {
                problem.x = static_cast<const float*>(problem.x) + first * test_.in_features;
                problem.tokens = count;
                return problem;
            };
            Problem problem = part(layer_.problem(x_));
            problem.y = y.data();
            if (gate_)
                paged_gated(kernel, part(gate_->problem(x_)), problem, activation_, 1);
            else
                paged_linear(kernel, problem, 1);
            if (!std::equal(y.begin(), y.end(), together.begin() + first * static_cast<int64_t>(row)))
                report("the bits of tokens from " + std::to_string(first) + " on depend on others");
            first += count;
        }
    }

    // Beside weights with scales activations are rounded to int16, by the largest of a block: a small one loses more.
    double limit() const {
        const bool rounded = scaled(test_.weight_dtype);
        if (test_.dtype == Dtype::float32) return rounded ? 2e-3 : 1e-5;
        return rounded ? 2e-2 : 1e-2;
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
        // Where nothing but zero is expected, every element has just been held to that.
        if (squares == 0) return;
        const double relative = std::sqrt(error_squares / squares);
        if (!(relative <= limit())) report("relative error " + text(relative) + ", expected at most " + text(limit()));
    }

    // Any entry outside the slots means absent. Without tokens nothing is read, so nothing is missed.
    void check_absent_page(const Kernel& kernel, int threads, PagedWeight& weight) {
        if (weight.kept() == 0) return;
        constexpr int32_t lowest = std::numeric_limits<int32_t>::min(), highest = std::numeric_limits<int32_t>::max();
        const int64_t page = weight.page_of(random_.below(weight.kept()));
        const int32_t absent = random_.any<int32_t>({-1, lowest, highest, static_cast<int32_t>(weight.slots())});
        const int32_t slot = weight.replace_slot(page, absent);
        run(kernel, threads, test_.tokens == 0 ? kAllResident : page);
        weight.replace_slot(page, slot);
    }

    void report_element(int64_t at, double got, double expected) {
        report("token " + std::to_string(at / test_.out_features) + ", output " +
               std::to_string(at % test_.out_features) + ": expected " + text(expected) + ", got " + text(got));
    }

    void report(const std::string& what) {
        mistakes_.push_back(calling_ + (gate_ ? ", gated: " : ": ") + what + "; " + describe(test_));
    }

    Random random_;
    TestCase test_;
    std::vector<uint8_t> x_;
    Layer layer_;
    std::optional<Layer> gate_;
    Unary activation_ = Unary::silu;
    Expected expected_;
    std::string calling_;
    std::vector<std::string> mistakes_;
};

}  // namespace

std::vector<std::string> mistakes(int64_t number, const std::vector<const Kernel*>& kernels) {
    Trial trial(number);
    for (const Kernel* kernel : kernels) trial.check(*kernel);
    return trial.mistakes();
}

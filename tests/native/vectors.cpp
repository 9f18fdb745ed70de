#include "vectors.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "bfloat16.hpp"
#include "half.hpp"
#include "random.hpp"

using namespace weightpager;

namespace {

using Numbers = std::vector<float>;

Numbers numbers(int64_t count, float scale, Random& random) {
    Numbers found(static_cast<size_t>(count));
    for (float& each : found) each = scale * random.number();
    return found;
}

class Check {
   public:
    Check(const Vectors& vectors, int64_t number) : vectors_(vectors), random_(static_cast<uint64_t>(number)), number_(number) {}

    void run() {
        elements();
        norms();
        softmax();
        dense();
        attention();
    }

    std::vector<std::string> mistakes;

   private:
    void compare(const std::string& what, const Numbers& found, const std::vector<double>& wanted, double within) {
        for (size_t i = 0; i < wanted.size(); ++i)
            if (!(std::abs(found[i] - wanted[i]) <= within * (1 + std::abs(wanted[i])))) {
                std::ostringstream text;
                text << vectors_.name << ", case " << number_ << ", " << what << ", element " << i << ": expected " << wanted[i]
                     << ", got " << found[i];
                return mistakes.push_back(text.str());
            }
    }

    static double value_of(Unary kind, double x) {
        const double sigmoid = 1 / (1 + std::exp(-x));
        switch (kind) {
            case Unary::none: return x;
            case Unary::gelu: return x / 2 * (1 + std::erf(x / std::sqrt(2.0)));
            case Unary::gelu_tanh: return x / 2 * (1 + std::tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
            case Unary::relu: return std::max(x, 0.0);
            case Unary::silu: return x * sigmoid;
            case Unary::tanh: return std::tanh(x);
            case Unary::quick_gelu: return x / (1 + std::exp(-1.702 * x));
            case Unary::sigmoid: return sigmoid;
            case Unary::negate: return -x;
            case Unary::sqrt: return std::sqrt(x);
            case Unary::rsqrt: return 1 / std::sqrt(x);
        }
        return x;
    }

    void elements() {
        const int64_t count = random_.between(1, 70);
        for (int kind = 0; kind <= static_cast<int>(Unary::rsqrt); ++kind) {
            const Unary unary = static_cast<Unary>(kind);
            Numbers x = numbers(count, random_.one_in(2) ? 2.0f : 40.0f, random_), y(x.size());
            if (unary == Unary::sqrt || unary == Unary::rsqrt)
                for (float& each : x) each = std::abs(each) + 0.1f;
            vectors_.unary(unary, x.data(), y.data(), count);
            std::vector<double> wanted;
            for (float each : x) wanted.push_back(value_of(unary, each));
            compare("element operator " + std::to_string(kind), y, wanted, 1e-6);
        }
        const Numbers x = numbers(count, 3, random_), y = numbers(count, 3, random_);
        const int x_step = random_.one_in(3) ? 0 : 1, y_step = random_.one_in(3) ? 0 : 1;
        Numbers sum(x.size());
        vectors_.binary(Binary::add, x.data(), x_step, y.data(), y_step, sum.data(), count);
        std::vector<double> wanted;
        for (size_t i = 0; i < x.size(); ++i) wanted.push_back(double{x[x_step == 0 ? 0 : i]} + y[y_step == 0 ? 0 : i]);
        compare("sum", sum, wanted, 1e-6);
    }

    void norms() {
        const int64_t rows = random_.between(1, 4), columns = random_.between(1, 90);
        const Numbers x = numbers(rows * columns, 2, random_), y = numbers(rows * columns, 2, random_);
        const Numbers weight = numbers(columns, 1, random_), bias = numbers(columns, 1, random_);
        const bool centred = random_.one_in(2), adds = random_.one_in(2), weighted = !random_.one_in(3);
        Numbers sum(x.size()), out(x.size());
        Norm norm{x.data(), adds ? y.data() : nullptr, sum.data(), out.data(), weighted ? weight.data() : nullptr,
                  centred ? bias.data() : nullptr, columns, 1e-2f, centred ? 0.0f : 1.0f, centred};
        vectors_.norm(norm, 0, rows);
        std::vector<double> wanted;
        for (int64_t row = 0; row < rows; ++row) {
            const auto at = [&](int64_t i) { return double{x[static_cast<size_t>(row * columns + i)]} + (adds ? y[static_cast<size_t>(row * columns + i)] : 0); };
            double mean = 0, squares = 0;
            for (int64_t i = 0; i < columns; ++i) mean += centred ? at(i) / static_cast<double>(columns) : 0;
            for (int64_t i = 0; i < columns; ++i) squares += (at(i) - mean) * (at(i) - mean) / static_cast<double>(columns);
            for (int64_t i = 0; i < columns; ++i) {
                const size_t c = static_cast<size_t>(i);
                const double scale = weighted ? weight[c] + double{norm.offset} : 1;
                wanted.push_back((at(i) - mean) / std::sqrt(squares + 1e-2) * scale + (centred ? bias[c] : 0));
            }
        }
        compare("norm", out, wanted, 1e-5);
    }

    void softmax() {
        const int64_t columns = random_.between(1, 90);
        const Numbers x = numbers(columns, 20, random_);
        Numbers y(x.size());
        vectors_.softmax(x.data(), y.data(), columns, 0, 1);
        double sum = 0;
        for (float each : x) sum += std::exp(double{each});
        std::vector<double> wanted;
        for (float each : x) wanted.push_back(std::exp(double{each}) / sum);
        compare("softmax", y, wanted, 1e-6);
    }

    void dense() {
        const int64_t rows = random_.between(1, 9), inputs = random_.between(1, 90), outputs = random_.between(1, 11);
        const Numbers x = numbers(rows * inputs, 1, random_), bias = numbers(outputs, 1, random_);
        Numbers weight = numbers(outputs * inputs, 1, random_), y(static_cast<size_t>(rows * outputs));
        std::vector<uint16_t> narrow;
        for (float& each : weight) narrow.push_back(to_bfloat16(each));
        const bool bfloat16 = random_.one_in(2);
        if (bfloat16) std::transform(narrow.begin(), narrow.end(), weight.begin(), from_bfloat16);
        const Dense dense{x.data(), inputs, bfloat16 ? static_cast<const void*>(narrow.data()) : weight.data(), bfloat16,
                          bias.data(), y.data(), outputs, inputs, Unary::none};
        vectors_.dense(dense, 0, rows, 0, outputs);
        std::vector<double> wanted;
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t o = 0; o < outputs; ++o) {
                double sum = bias[static_cast<size_t>(o)];
                for (int64_t i = 0; i < inputs; ++i)
                    sum += double{x[static_cast<size_t>(row * inputs + i)]} * weight[static_cast<size_t>(o * inputs + i)];
                wanted.push_back(sum);
            }
        compare("dense product", y, wanted, 1e-5);
    }

    void attention() {
        const int64_t groups = random_.between(1, 2), heads = groups * random_.between(1, 3), queries = random_.between(1, 60);
        const int64_t keys = random_.one_in(2) ? queries : random_.between(1, 140), depth = random_.between(1, 40);
        const int64_t value_depth = random_.between(1, 70);
        const Numbers query = numbers(heads * queries * depth, 1, random_), key = numbers(groups * keys * depth, 1, random_);
        const Numbers value = numbers(groups * keys * value_depth, 1, random_);
        std::vector<uint8_t> mask;
        for (int64_t i = 0; i < keys; ++i) mask.push_back(random_.one_in(4) ? 0 : 1);
        Attention a{};
        Numbers out(static_cast<size_t>(heads * queries * value_depth));
        a.query = query.data();
        a.key = key.data();
        a.value = value.data();
        a.out = out.data();
        a.query_at = {0, queries * depth, depth};
        a.key_at = {0, keys * depth, depth};
        a.value_at = {0, keys * value_depth, value_depth};
        a.out_at = {0, queries * value_depth, value_depth};
        a.heads = heads;
        a.groups = groups;
        a.queries = queries;
        a.keys = keys;
        a.depth = depth;
        a.value_depth = value_depth;
        a.mask = mask.data();
        a.mask_row = keys;
        a.mask_key = 1;
        a.scale = 0.4f;
        a.softcap = random_.one_in(2) ? 0.0f : 1.5f;
        a.causal = keys == queries && random_.one_in(2);
        a.window = keys == queries && random_.one_in(2) ? random_.between(1, 70) : 0;
        a.batch = 1;
        for (int64_t group = 0; group < groups; ++group) vectors_.attend(a, 0, group, 0, a.rows());
        compare("attention", out, attended(a, mask), 1e-5);
    }

    static std::vector<double> attended(const Attention& a, const std::vector<uint8_t>& mask) {
        std::vector<double> wanted;
        for (int64_t h = 0; h < a.heads; ++h)
            for (int64_t t = 0; t < a.queries; ++t) {
                const int64_t group = h / (a.heads / a.groups), position = a.keys - a.queries + t;
                std::vector<double> sums(static_cast<size_t>(a.value_depth), 0.0);
                double total = 0;
                for (int64_t k = 0; k < a.keys; ++k) {
                    if (mask[static_cast<size_t>(k)] == 0 || (a.causal && k > position)) continue;
                    if (a.window != 0 && std::abs(position - k) >= a.window) continue;
                    double score = 0;
                    for (int64_t d = 0; d < a.depth; ++d)
                        score += double{a.query[(h * a.queries + t) * a.depth + d]} * a.key[(group * a.keys + k) * a.depth + d];
                    score *= double{a.scale};
                    if (a.softcap != 0) score = a.softcap * std::tanh(score / a.softcap);
                    total += std::exp(score);
                    for (int64_t d = 0; d < a.value_depth; ++d)
                        sums[static_cast<size_t>(d)] += std::exp(score) * a.value[(group * a.keys + k) * a.value_depth + d];
                }
                for (double sum : sums) wanted.push_back(total > 0 ? sum / total : 0);
            }
        return wanted;
    }

    const Vectors& vectors_;
    Random random_;
    int64_t number_;
};

double value_of(Half half) {
    const int exponent = half.bits >> 10 & 31, fraction = half.bits & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return (half.bits & 0x8000) != 0 ? -magnitude : magnitude;
}

// Of a KV cache with a single key, its value is what attention gives.
Numbers widened(const Vectors& vectors, const std::vector<Half>& halves) {
    const std::vector<Half> keys(kKeysAtOnce, Half{0});
    const void *key_block = keys.data(), *value_block = halves.data();
    const float query = 1.0f;
    Numbers out(halves.size());
    Attention a{};
    a.query = &query;
    a.out = out.data();
    a.batch = a.heads = a.groups = a.queries = a.keys = a.depth = 1;
    a.value_depth = static_cast<int64_t>(halves.size());
    a.key_blocks = &key_block;
    a.value_blocks = &value_block;
    a.halves = true;
    vectors.attend(a, 0, 0, 0, 1);
    return out;
}

// Every float16 that `to_half` writes.
std::vector<std::string> half_mistakes(const Vectors& vectors) {
    std::vector<std::string> mistakes;
    for (uint32_t first = 0; first < 0x10000 && mistakes.empty(); first += kDeepestHead) {
        std::vector<Half> halves;
        for (uint32_t bits = first; bits < first + kDeepestHead; ++bits)
            if ((bits & 0x7fff) < 0x7c00 || (bits & 0x7fff) == 0x7e00) halves.push_back({static_cast<uint16_t>(bits)});
        if (halves.empty()) continue;
        const Numbers found = widened(vectors, halves);
        for (size_t i = 0; i < halves.size() && mistakes.empty(); ++i) {
            const bool number = (halves[i].bits & 0x7fff) < 0x7c00;
            if (number ? found[i] == value_of(halves[i]) : std::isnan(found[i])) continue;
            std::ostringstream text;
            text << vectors.name << ", float16 of bits " << halves[i].bits << ": got " << found[i];
            mistakes.push_back(text.str());
        }
    }
    return mistakes;
}

}  // namespace

std::vector<std::string> vector_mistakes(const Vectors& vectors, int64_t cases) {
    std::vector<std::string> found = half_mistakes(vectors);
    for (int64_t number = 0; number < cases && found.size() < 10; ++number) {
        Check check(vectors, number);
        check.run();
        found.insert(found.end(), check.mistakes.begin(), check.mistakes.end());
    }
    return found;
}

#include "products.hpp"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "bfloat16.hpp"
#include "divide.hpp"
#include "random.hpp"

using namespace weightpager;

namespace {

std::vector<uint16_t> halves(int64_t count, Random& random) {
    std::vector<uint16_t> found(static_cast<size_t>(count));
    for (uint16_t& each : found) each = to_bfloat16(random.number());
    return found;
}

std::vector<float> widened(const std::vector<uint16_t>& halves) {
    std::vector<float> found;
    for (const uint16_t half : halves) found.push_back(from_bfloat16(half));
    return found;
}

// A weight, which of its blocks are kept, and how its rows are rounded.
struct Case {
    explicit Case(Random& random)
        : out_features(random.between(1, 70)), in_features(random.between(1, 70)), rows(int64_t{8} << random.between(0, 2)),
          cols(int64_t{8} << random.between(0, 2)), grid_cols(divide_up(in_features, cols)), rounds(random.one_in(2)) {
        for (int64_t i = 0; i < out_features * in_features; ++i) weight.push_back(random.one_in(9) ? 0 : random.number());
        crow.push_back(0);
        for (int64_t row = 0; row < divide_up(out_features, rows); ++row) {
            for (int64_t col = 0; col < grid_cols; ++col)
                if (!random.one_in(3)) columns.push_back(static_cast<int32_t>(col));
            crow.push_back(static_cast<int32_t>(columns.size()));
        }
        for (int64_t i = 0; i < divide_up(out_features, rows) * rows * grid_cols; ++i)
            divisors.push_back(static_cast<float>(random.between(5, 8)));
    }

    KeptBlocks kept() const { return {crow.data(), columns.data(), out_features, in_features, rows, cols}; }
    RowRounding rounding() const { return {rounds ? divisors.data() : nullptr, -8, 7}; }

    float at(int64_t out, int64_t in) const {
        return out < out_features && in < in_features ? weight[static_cast<size_t>(out * in_features + in)] : 0.0f;
    }

    // As a page will hold it.
    float stored(int64_t out, int64_t in) const {
        if (!rounds) return from_bfloat16(to_bfloat16(at(out, in)));
        const int64_t block_col = in / cols;
        float largest = 0;
        for (int64_t c = 0; c < cols; ++c) largest = std::max(largest, std::abs(at(out, block_col * cols + c)));
        const float scale = from_bfloat16(to_bfloat16(largest / divisors[static_cast<size_t>(out * grid_cols + block_col)]));
        const float number = std::nearbyint(at(out, in) / (scale == 0 ? 1 : scale));
        return from_bfloat16(to_bfloat16(std::min(std::max(number, -8.0f), 7.0f) * scale));
    }

    int64_t out_features, in_features, rows, cols, grid_cols;
    bool rounds;
    std::vector<float> weight, divisors;
    std::vector<int32_t> crow, columns;
};

class Check {
   public:
    Check(const Products& products, int64_t number)
        : products_(products), number_(number), random_(static_cast<uint64_t>(number)), case_(random_) {}

    void run() {
        packs();
        finds_gradients();
    }

    std::vector<std::string> mistakes;

   private:
    template <class Body>
    void each_block(const Body& body) const {
        for (size_t row = 0; row + 1 < case_.crow.size(); ++row)
            for (int32_t k = case_.crow[row]; k < case_.crow[row + 1]; ++k)
                body(k, static_cast<int64_t>(row) * case_.rows, case_.columns[static_cast<size_t>(k)] * case_.cols);
    }

    void tell(const char* what, double wanted, double found) {
        std::ostringstream text;
        text << "products " << products_.name << ", case " << number_ << ", " << what << ": expected " << wanted << ", got "
             << found;
        mistakes.push_back(text.str());
    }

    void packs() {
        const int64_t size = case_.rows * case_.cols;
        std::vector<uint16_t> blocks(case_.columns.size() * static_cast<size_t>(size)), turned(blocks.size());
        products_.pack(case_.kept(), case_.weight.data(), case_.rounding(), blocks.data(), turned.data(), 2);
        each_block([&](int64_t k, int64_t first_row, int64_t first_col) {
            for (int64_t r = 0; r < case_.rows; ++r)
                for (int64_t c = 0; c < case_.cols; ++c) {
                    const float wanted = case_.stored(first_row + r, first_col + c);
                    const int64_t at = k * size + (c / 2 * case_.rows + r) * 2 + c % 2;
                    const int64_t turned_at = k * size + (r / 2 * case_.cols + c) * 2 + r % 2;
                    const float one = from_bfloat16(blocks[static_cast<size_t>(at)]);
                    const float other = from_bfloat16(turned[static_cast<size_t>(turned_at)]);
                    if (one != wanted) tell("a block", wanted, one);
                    if (other != wanted) tell("a turned block", wanted, other);
                }
        });
    }

    void finds_gradients() {
        const int64_t tokens = random_.one_in(4) ? random_.between(250, 530) : random_.between(1, 9);
        const int64_t outs = case_.out_features, ins = case_.in_features;
        const std::vector<uint16_t> x = halves(tokens * ins, random_), dy = halves(tokens * outs, random_);
        const std::vector<float> wide_x = widened(x), wide_dy = widened(dy);
        std::vector<float> found(static_cast<size_t>(outs * ins), 1.0f), found_wide = found;
        std::vector<double> wanted(found.size(), 1.0);
        products_.add_gradient(case_.kept(), x.data(), dy.data(), tokens, found.data(), 2);
        products_.add_gradient_float32(case_.kept(), wide_x.data(), wide_dy.data(), tokens, found_wide.data(), 2);
        each_block([&](int64_t, int64_t first_row, int64_t first_col) {
            for (int64_t out = first_row; out < std::min(first_row + case_.rows, outs); ++out)
                for (int64_t in = first_col; in < std::min(first_col + case_.cols, ins); ++in)
                    for (int64_t t = 0; t < tokens; ++t)
                        wanted[static_cast<size_t>(out * ins + in)] +=
                            double{wide_dy[static_cast<size_t>(t * outs + out)]} * wide_x[static_cast<size_t>(t * ins + in)];
        });
        compare("a gradient of bfloat16", wanted, found, tokens);
        compare("a gradient of float32", wanted, found_wide, tokens);
    }

    void compare(const char* what, const std::vector<double>& wanted, const std::vector<float>& found, int64_t tokens) {
        for (size_t i = 0; i < wanted.size(); ++i)
            if (!(std::abs(found[i] - wanted[i]) <= 1e-5 * static_cast<double>(tokens + 1)))
                return tell(what, wanted[i], found[i]);
    }

    const Products& products_;
    int64_t number_;
    Random random_;
    Case case_;
};

}  // namespace

std::vector<std::string> product_mistakes(const Products& products, int64_t cases) {
    std::vector<std::string> found;
    for (int64_t number = 0; number < cases && found.empty(); ++number) {
        Check check(products, number);
        check.run();
        found = check.mistakes;
    }
    return found;
}

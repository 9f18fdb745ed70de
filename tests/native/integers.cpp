#include "integers.hpp"

#include <sstream>

#define WEIGHTPAGER_LANES 4
#include "linear/kernels/integers.hpp"
#include "random.hpp"

using namespace weightpager;

namespace {

constexpr int kLanes = WEIGHTPAGER_LANES;
using Int = Lanes<kLanes>::Int;

// The ends of a range as often as what lies between: there a product of too few bits shows.
int32_t any(Random& random, int32_t least, int32_t most) {
    if (random.one_in(2)) return static_cast<int32_t>(random.between(least, most));
    return random.one_in(2) ? least : most;
}

struct Case {
    explicit Case(Random& random) {
        for (int32_t& each : x) each = any(random, -32767, 32767);
        for (int lane = 0; lane < kLanes; ++lane) {
            sums[lane] = static_cast<int32_t>(random.between(-1000000, 1000000));
            for (int32_t& each : weights[lane]) each = any(random, -128, 127);
        }
    }

    uint32_t pair() const { return (static_cast<uint32_t>(x[0]) & 0xffff) | static_cast<uint32_t>(x[1]) << 16; }

    // Of weights of which the lowest bits are kept.
    int32_t wanted(int lane, int bits) const {
        int32_t sum = sums[lane];
        for (int i = 0; i < 2; ++i) sum += narrow(weights[lane][i], bits) * x[i];
        return sum;
    }

    static int32_t narrow(int32_t weight, int bits) {
        return static_cast<int32_t>(static_cast<uint32_t>(weight) << (32 - bits)) >> (32 - bits);
    }

    int32_t x[2], weights[kLanes][2];
    Int sums;
};

Int of_int8(const Case& test) {
    uint8_t bytes[2 * kLanes];
    for (int i = 0; i < 2 * kLanes; ++i) bytes[i] = static_cast<uint8_t>(test.weights[i / 2][i % 2]);
    return multiply_add<kLanes>(test.sums, read_integers<kLanes>(bytes), test.pair());
}

// One pair of four of each word; the others are all ones.
template <int Pair>
Int of_int4(const Case& test) {
    constexpr int first_bit[] = {0, 8, 4, 12};
    Lanes<kLanes>::Bits words;
    for (int lane = 0; lane < kLanes; ++lane) {
        words[lane] = 0xffffffffu;
        for (int i = 0; i < 2; ++i)
            words[lane] ^= (~static_cast<uint32_t>(test.weights[lane][i]) & 15) << (first_bit[Pair] + 16 * i);
    }
    return multiply_add<kLanes>(test.sums, pair_of_int4<kLanes, Pair>(words), test.pair());
}

}  // namespace

std::vector<std::string> integer_mistakes(int64_t cases) {
    std::vector<std::string> mistakes;
    const auto compare = [&](const char* what, int64_t number, const Case& test, int bits, Int found) {
        for (int lane = 0; lane < kLanes; ++lane) {
            if (found[lane] == test.wanted(lane, bits)) continue;
            std::ostringstream text;
            text << what << ", case " << number << ", lane " << lane << ": expected " << test.wanted(lane, bits)
                 << ", got " << found[lane];
            mistakes.push_back(text.str());
        }
    };
    for (int64_t number = 0; number < cases && mistakes.empty(); ++number) {
        Random random(static_cast<uint64_t>(number));
        const Case test(random);
        compare("products of int8", number, test, 8, of_int8(test));
        compare("products of int4, pair 0", number, test, 4, of_int4<0>(test));
        compare("products of int4, pair 1", number, test, 4, of_int4<1>(test));
        compare("products of int4, pair 2", number, test, 4, of_int4<2>(test));
        compare("products of int4, pair 3", number, test, 4, of_int4<3>(test));
    }
    return mistakes;
}

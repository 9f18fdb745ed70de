// The sums of a tile's tokens and some outputs, in registers: for kernel.cpp, which the build gives WEIGHTPAGER_LANES.
#pragma once

#include "lanes.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

// Whether an activation is spread over a register once for all outputs. AVX2 has no operand that is spread as it is read.
constexpr bool kSharesInputs = WEIGHTPAGER_LANES == 8;

// Several chains per output where few outputs are in flight and an addition would wait for the last one's result.
// The order of additions thus depends on the tile's width, but on nothing else.
template <class Weights, class Out, int Width>
struct Accumulators {
    static constexpr int in_flight = Out::Registers * Width;
    static constexpr int needed = !Weights::waits || in_flight >= 8 ? 1 : in_flight >= 4 ? 2 : 4;
    static constexpr int chains = Weights::sums > 1 ? Weights::sums : needed;
    using Sum = typename Weights::template Sum<Out::N>;
    using Float = typename Lanes<Out::N>::Float;

    Sum sum[chains][Width][Out::Registers];

    WEIGHTPAGER_INLINE Accumulators() { clear(); }

    WEIGHTPAGER_INLINE void clear() {
        each([](Sum& one) WEIGHTPAGER_INLINED { one = Sum{}; });
    }

    // One by one: an array this large that is changed in one go stays in memory.
    template <class Change>
    WEIGHTPAGER_INLINE void each(const Change& change) {
        unroll<chains * Width * Out::Registers>([&](auto i) WEIGHTPAGER_INLINED {
            constexpr int I = decltype(i)::value, R = I % Out::Registers, T = I / Out::Registers % Width;
            change(sum[I / Out::Registers / Width][T][R]);
        });
    }

    template <int Step>
    WEIGHTPAGER_INLINE void add(const uint8_t* step, int64_t block_rows, const typename Weights::Input* x) {
        if constexpr (kSharesInputs && Out::Registers == 2) {
            add_to_two<Step>(step, block_rows, x);
            return;
        }
        unroll<Out::Registers>([&](auto r) WEIGHTPAGER_INLINED {
            constexpr int R = decltype(r)::value;
            const auto read = Weights::template read<Out::N>(step + R * Out::N * Weights::row_bytes, block_rows);
            unroll<Weights::rows>([&](auto row) WEIGHTPAGER_INLINED {
                constexpr int Row = decltype(row)::value;
                const auto weights = Weights::template operand<Out::N, Row>(read);
                unroll<Width>([&](auto t) WEIGHTPAGER_INLINED {
                    constexpr int T = decltype(t)::value;
                    add_product<Step, Row, T, R>(weights, x[Row * Width + T]);
                });
            });
        });
    }

    // The same, each activation for both registers at once.
    template <int Step>
    WEIGHTPAGER_INLINE void add_to_two(const uint8_t* step, int64_t block_rows, const typename Weights::Input* x) {
        const auto first = Weights::template read<Out::N>(step, block_rows);
        const auto second = Weights::template read<Out::N>(step + Out::N * Weights::row_bytes, block_rows);
        unroll<Weights::rows>([&](auto row) WEIGHTPAGER_INLINED {
            constexpr int Row = decltype(row)::value;
            const auto weights = Weights::template operand<Out::N, Row>(first);
            const auto others = Weights::template operand<Out::N, Row>(second);
            unroll<Width>([&](auto t) WEIGHTPAGER_INLINED {
                constexpr int T = decltype(t)::value;
                const typename Weights::Input input = x[Row * Width + T];
                add_product<Step, Row, T, 0>(weights, input);
                add_product<Step, Row, T, 1>(others, input);
            });
        });
    }

    template <int Step, int Row, int T, int R, class Operand>
    WEIGHTPAGER_INLINE void add_product(const Operand& weights, typename Weights::Input x) {
        constexpr int chain = Weights::sums > 1 ? Row * Weights::sums / Weights::rows : (Step * Weights::rows + Row) % chains;
        Sum& to = sum[chain][T][R];
        to = Weights::template add<Out::N>(to, weights, x);
    }

    // Calls `with` for the sum of every token and register of outputs. Unrolled: one look at an accumulator by a number
    // that isn't constant would keep all of them in memory.
    template <class With>
    WEIGHTPAGER_INLINE void totals(const With& with) const {
        unroll<Width>([&](auto t) WEIGHTPAGER_INLINED {
            unroll<Out::Registers>([&](auto r) WEIGHTPAGER_INLINED {
                constexpr int T = decltype(t)::value, R = decltype(r)::value;
                if constexpr (Weights::sums == 4) {
                    with(t, r, Weights::joined(sum[0][T][R], sum[1][T][R], sum[2][T][R], sum[3][T][R]));
                } else if constexpr (Weights::sums == 2) {
                    with(t, r, Weights::joined(sum[0][T][R], sum[1][T][R]));
                } else {
                    Sum all = sum[0][T][R];
                    unroll<chains - 1>([&](auto c) WEIGHTPAGER_INLINED { all += sum[decltype(c)::value + 1][T][R]; });
                    with(t, r, all);
                }
            });
        });
    }
};

}  // namespace
}  // namespace weightpager

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
class Accumulators {
   public:
    WEIGHTPAGER_INLINE Accumulators() { clear(); }

    WEIGHTPAGER_INLINE void clear() {
        each([](Sum& one) WEIGHTPAGER_INLINED { one = Sum{}; });
    }

    // One by one: an array this large that is changed in one go stays in memory.
    template <class Change>
    WEIGHTPAGER_INLINE void each(const Change& change) {
        each_of(change, Numbers<chains * Width * Out::Registers>{});
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
                add_products<R>(sum[chain(Step, Row)], weights, x + Row * Width, Numbers<Width>{});
            });
        });
    }

    // Calls `with` for the sum of every token and register of outputs. Unrolled: one look at an accumulator by a number
    // that isn't constant would keep all of them in memory.
    template <class With>
    WEIGHTPAGER_INLINE void totals(const With& with) const {
        totals_of(with, Numbers<Width * Out::Registers>{});
    }

   private:
    static constexpr int in_flight = Out::Registers * Width;
    static constexpr int needed = !Weights::waits || in_flight >= 8 ? 1 : in_flight >= 4 ? 2 : 4;
    static constexpr int chains = Weights::sums > 1 ? Weights::sums : needed;

    using Sum = typename Weights::template Sum<Out::N>;

    // To unroll without a lambda for each number: there are so many of them that a compiler takes minutes.
    template <int N>
    using Numbers = std::make_integer_sequence<int, N>;

    Sum sum[chains][Width][Out::Registers];

    static constexpr int chain(int step, int row) {
        return Weights::sums > 1 ? row * Weights::sums / Weights::rows : (step * Weights::rows + row) % chains;
    }

    template <class Change, int... I>
    WEIGHTPAGER_INLINE void each_of(const Change& change, std::integer_sequence<int, I...>) {
        (change(sum[I / Out::Registers / Width][I / Out::Registers % Width][I % Out::Registers]), ...);
    }

    // As `add`, each activation for both registers at once.
    template <int Step>
    WEIGHTPAGER_INLINE void add_to_two(const uint8_t* step, int64_t block_rows, const typename Weights::Input* x) {
        const auto first = Weights::template read<Out::N>(step, block_rows);
        const auto second = Weights::template read<Out::N>(step + Out::N * Weights::row_bytes, block_rows);
        unroll<Weights::rows>([&](auto row) WEIGHTPAGER_INLINED {
            constexpr int Row = decltype(row)::value;
            const auto weights = Weights::template operand<Out::N, Row>(first);
            const auto others = Weights::template operand<Out::N, Row>(second);
            add_pairs(sum[chain(Step, Row)], weights, others, x + Row * Width, Numbers<Width>{});
        });
    }

    template <int R, class Operand, int... T>
    WEIGHTPAGER_INLINE static void add_products(Sum (&to)[Width][Out::Registers], const Operand& weights,
                                                const typename Weights::Input* x, std::integer_sequence<int, T...>) {
        ((to[T][R] = Weights::template add<Out::N>(to[T][R], weights, x[T])), ...);
    }

    template <class Operand, int... T>
    WEIGHTPAGER_INLINE static void add_pairs(Sum (&to)[Width][Out::Registers], const Operand& weights, const Operand& others,
                                             const typename Weights::Input* x, std::integer_sequence<int, T...>) {
        ((to[T][0] = Weights::template add<Out::N>(to[T][0], weights, x[T]),
          to[T][1] = Weights::template add<Out::N>(to[T][1], others, x[T])),
         ...);
    }

    template <class With, int... I>
    WEIGHTPAGER_INLINE void totals_of(const With& with, std::integer_sequence<int, I...>) const {
        (with(I / Out::Registers, I % Out::Registers, total<I / Out::Registers, I % Out::Registers>()), ...);
    }

    template <int T, int R>
    WEIGHTPAGER_INLINE auto total() const {
        if constexpr (Weights::sums == 4) {
            return Weights::joined(sum[0][T][R], sum[1][T][R], sum[2][T][R], sum[3][T][R]);
        } else if constexpr (Weights::sums == 2) {
            return Weights::joined(sum[0][T][R], sum[1][T][R]);
        } else {
            Sum all = sum[0][T][R];
            unroll<chains - 1>([&](auto c) WEIGHTPAGER_INLINED { all += sum[decltype(c)::value + 1][T][R]; });
            return all;
        }
    }
};

}  // namespace
}  // namespace weightpager

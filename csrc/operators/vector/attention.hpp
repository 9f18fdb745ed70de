// Attention by blocks of keys: scores of some queries and a block of keys stay in the cache, and sums are rescaled when a
// greater score is met (Milakov and Gimelshein, Online normalizer calculation for softmax). No score is stored for longer.
#pragma once

#include "divide.hpp"
#include "norms.hpp"
#include "threads/pool.hpp"

namespace weightpager {
namespace {  // see bfloat16.hpp

constexpr int kKeyRegisters = kKeysAtOnce / kLanes;                     // of a row of scores
constexpr int kRegistersAtOnce = kLanes == 8 ? 2 : kLanes == 4 ? 2 : 4;  // of keys or values that are multiplied at once
constexpr int kRowsAtOnce = kLanes == 16 ? 6 : 4;
static_assert(kKeyRegisters % kRegistersAtOnce == 0);

WEIGHTPAGER_INLINE void add_product(Float& sum, Float lanes, float by) { sum = fused<kLanes>(lanes, Float{} + by, sum); }

// Some rows of queries of a group, and what they have come to.
class QueryTile {
   public:
    QueryTile(const Attention& a, int64_t batch, int64_t group, int64_t first_row, int64_t rows)
        : a_(a), batch_(batch), group_(group), first_row_(first_row), rows_(static_cast<int>(rows)),
          width_(divide_up(a.value_depth, kLanes) * kLanes) {
        for (int r = 0; r < rows_; ++r) {
            const float* from = a.query + batch * a.query_at.batch + head(r) * a.query_at.head + token(r) * a.query_at.token;
            for (int64_t d = 0; d < a.depth; ++d) query_[r * a.depth + d] = from[d] * a.scale;
            largest_[r] = -__builtin_inff();
            total_[r] = 0.0f;
            first_position_ = r == 0 || position(r) < first_position_ ? position(r) : first_position_;
            last_position_ = r == 0 || position(r) > last_position_ ? position(r) : last_position_;
            least_ = r == 0 || least(r) < least_ ? least(r) : least_;
            end_ = r == 0 || end(r) > end_ ? end(r) : end_;
        }
        for (int64_t i = 0; i < rows_ * width_; ++i) sums_[i] = 0.0f;
    }

    void run() {
        for (int64_t first = 0; first < a_.keys; first += kKeysAtOnce) {
            const int64_t count = a_.keys - first < kKeysAtOnce ? a_.keys - first : kKeysAtOnce;
            if (!any_seen(first, count)) continue;
            if (a_.key_blocks == nullptr) {
                multiply_keys(keys(first, count));
                take_shares(first, count);
                const int64_t at = batch_ * a_.value_at.batch + group_ * a_.value_at.head + first * a_.value_at.token;
                add_values(a_.value + at, a_.value_at.token, count);
            } else if (a_.halves) {
                take_remembered<Half>(first, count);
            } else {
                take_remembered<float>(first, count);
            }
        }
        write();
    }

   private:
    int64_t head(int r) const { return group_ * (a_.heads / a_.groups) + (first_row_ + r) / a_.queries; }
    int64_t token(int r) const { return (first_row_ + r) % a_.queries; }
    int64_t position(int r) const { return a_.keys - a_.queries + token(r); }

    // The keys that a row may see, mask aside: from `least` to before `end`.
    int64_t least(int r) const {
        if (a_.segments != nullptr) return a_.segments[2 * batch_ * a_.keys + token(r)];
        return a_.window == 0 ? 0 : position(r) - a_.window + 1;
    }
    int64_t end(int r) const {
        if (a_.segments != nullptr) return a_.segments[(2 * batch_ + 1) * a_.keys + token(r)];
        if (a_.causal) return position(r) + 1;
        return a_.window == 0 ? a_.keys : position(r) + a_.window;
    }

    bool any_seen(int64_t first, int64_t count) const {
        if (a_.segments != nullptr) return first + count > least_ && first < end_;
        if (a_.causal && first > last_position_) return false;
        if (a_.window == 0) return true;
        return first + count > first_position_ - a_.window + 1 && first < last_position_ + a_.window;
    }

    template <class Element>
    void take_remembered(int64_t first, int64_t count) {
        const int64_t block = first / kKeysAtOnce, at = (batch_ * a_.groups + group_) * kKeysAtOnce;
        multiply_keys(static_cast<const Element*>(a_.key_blocks[block]) + at * a_.depth);
        take_shares(first, count);
        add_values(static_cast<const Element*>(a_.value_blocks[block]) + at * a_.value_depth, a_.value_depth, count);
    }

    // [depth, kKeysAtOnce]: lanes run along the keys.
    const float* keys(int64_t first, int64_t count) {
        const float* from = a_.key + batch_ * a_.key_at.batch + group_ * a_.key_at.head + first * a_.key_at.token;
        for (int64_t k = 0; k < kKeysAtOnce; k += kLanes) {
            int64_t d = 0;
            if (k + kLanes <= count)
                for (; d + kLanes <= a_.depth; d += kLanes) {
                    Float square[kLanes];
                    unroll<kLanes>([&](auto i) WEIGHTPAGER_INLINED { square[i] = load_floats(from + (k + i) * a_.key_at.token + d); });
                    transpose(square);
                    unroll<kLanes>([&](auto i) WEIGHTPAGER_INLINED { store_floats(keys_ + (d + i) * kKeysAtOnce + k, square[i]); });
                }
            for (; d < a_.depth; ++d)
                for (int64_t i = k; i < k + kLanes; ++i)
                    keys_[d * kKeysAtOnce + i] = i < count ? from[i * a_.key_at.token + d] : 0.0f;
        }
        return keys_;
    }

    template <int Rows, class Element>
    WEIGHTPAGER_INLINE void multiply_rows(const Element* keys, int row) {
        for (int column = 0; column < kKeyRegisters; column += kRegistersAtOnce) {
            Float scores[Rows][kRegistersAtOnce] = {};
            const float* query = query_ + row * a_.depth;
            const Element* key = keys + column * kLanes;
            for (int64_t d = 0; d < a_.depth; ++d, key += kKeysAtOnce)
                unroll<kRegistersAtOnce>([&](auto c) WEIGHTPAGER_INLINED {
                    const Float lanes = load_floats(key + c * kLanes);
                    unroll<Rows>([&](auto r) WEIGHTPAGER_INLINED { add_product(scores[r][c], lanes, query[r * a_.depth + d]); });
                });
            unroll<Rows>([&](auto r) WEIGHTPAGER_INLINED {
                unroll<kRegistersAtOnce>([&](auto c) WEIGHTPAGER_INLINED {
                    store_floats(scores_ + (row + r) * kKeysAtOnce + (column + c) * kLanes, scores[r][c]);
                });
            });
        }
    }

    // Calls `body(rows, row)` for as many rows at once as registers hold, and for what is left: a token's heads of a group
    // are few, and all of them should read a key once.
    template <class Body>
    WEIGHTPAGER_INLINE void by_rows(const Body& body) {
        int row = 0;
        for (; row + kRowsAtOnce <= rows_; row += kRowsAtOnce) body(Index<kRowsAtOnce>{}, row);
        for (; row + 3 <= rows_; row += 3) body(Index<3>{}, row);
        if (row + 2 == rows_) body(Index<2>{}, row);
        if (row + 1 == rows_) body(Index<1>{}, row);
    }

    template <class Element>
    void multiply_keys(const Element* keys) {
        by_rows([&](auto rows, int row) WEIGHTPAGER_INLINED { multiply_rows<decltype(rows)::value>(keys, row); });
    }

    // Turns scores into shares of what has been met so far, and rescales that.
    void take_shares(int64_t first, int64_t count) {
        float hidden[kKeysAtOnce];  // -infinity where a key is masked
        bool masked = count < kKeysAtOnce;
        for (int64_t k = 0; k < kKeysAtOnce; ++k) {
            const bool seen = k < count && (a_.mask == nullptr || is_seen(first + k));
            masked = masked || !seen;
            hidden[k] = seen ? 0.0f : -__builtin_inff();
        }
        float before[kQueriesAtOnce];
        for (int r = 0; r < rows_; ++r) {
            if (a_.softcap != 0.0f) cap(r);
            if (masked || least(r) > first || end(r) < first + count) hide(r, first, hidden);
            before[r] = largest_[r];
            largest_[r] = greatest(r);
        }
        // Where a row has met nothing, its sums are 0, and stay so whatever they are multiplied with.
        for (int r = 0; r < rows_; r += kLanes) {
            Float now = load_floats(largest_ + r);
            now = now == -__builtin_inff() ? Float{} : now;
            store_floats(base_ + r, now);
            store_floats(rescale_ + r, share_of(load_floats(before + r) - now));
        }
        for (int r = 0; r < rows_; ++r) {
            float* row = scores_ + r * kKeysAtOnce;
            Float sum{};
            unroll<kKeyRegisters>([&](auto c) WEIGHTPAGER_INLINED {
                const Float share = share_of(load_floats(row + c * kLanes) - base_[r]);
                store_floats(row + c * kLanes, share);
                sum += share;
            });
            total_[r] = total_[r] * rescale_[r] + sum_of(sum);
        }
    }

    bool is_seen(int64_t key) const {
        const int64_t at = batch_ * a_.mask_row + key * a_.mask_key;
        return a_.wide_mask ? static_cast<const int64_t*>(a_.mask)[at] != 0 : static_cast<const uint8_t*>(a_.mask)[at] != 0;
    }

    void cap(int r) {
        float* row = scores_ + r * kKeysAtOnce;
        for (int c = 0; c < kKeyRegisters; ++c)
            store_floats(row + c * kLanes, a_.softcap * hyperbolic_tangent<kLanes>(load_floats(row + c * kLanes) / a_.softcap));
    }

    // Selected, not added: what a block has behind its keys may be anything.
    void hide(int r, int64_t first, const float* hidden) {
        const int64_t low = least(r) - first, high = end(r) - first;
        float* row = scores_ + r * kKeysAtOnce;
        for (int64_t k = 0; k < kKeysAtOnce; ++k)
            row[k] = k < low || k >= high || hidden[k] != 0.0f ? -__builtin_inff() : row[k];
    }

    float greatest(int r) const {
        Float found = Float{} + largest_[r];
        for (int c = 0; c < kKeyRegisters; ++c) found = larger(load_floats(scores_ + r * kKeysAtOnce + c * kLanes), found);
        return largest_of(found);
    }

    template <int Rows, int Registers, class Element>
    WEIGHTPAGER_INLINE void add_tile(const Element* values, int64_t stride, int64_t count, int row, int64_t column) {
        Float sums[Rows][Registers];
        float* to = sums_ + row * width_ + column;
        unroll<Rows>([&](auto r) WEIGHTPAGER_INLINED {
            unroll<Registers>([&](auto c) WEIGHTPAGER_INLINED {
                sums[r][c] = load_floats(to + r * width_ + c * kLanes) * rescale_[row + r];
            });
        });
        const float* shares = scores_ + row * kKeysAtOnce;
        const int64_t left = a_.value_depth - column;
        if (left >= Registers * kLanes) {
            for (int64_t k = 0; k < count; ++k) {
                const Element* value = values + k * stride + column;
                unroll<Registers>([&](auto c) WEIGHTPAGER_INLINED {
                    const Float lanes = load_floats(value + c * kLanes);
                    unroll<Rows>([&](auto r) WEIGHTPAGER_INLINED { add_product(sums[r][c], lanes, shares[r * kKeysAtOnce + k]); });
                });
            }
        } else {
            for (int64_t k = 0; k < count; ++k) {
                const Float lanes = load_part(values + k * stride + column, left);
                unroll<Rows>([&](auto r) WEIGHTPAGER_INLINED { add_product(sums[r][0], lanes, shares[r * kKeysAtOnce + k]); });
            }
        }
        unroll<Rows>([&](auto r) WEIGHTPAGER_INLINED {
            unroll<Registers>([&](auto c) WEIGHTPAGER_INLINED { store_floats(to + r * width_ + c * kLanes, sums[r][c]); });
        });
    }

    template <int Rows, class Element>
    WEIGHTPAGER_INLINE void add_rows(const Element* values, int64_t stride, int64_t count, int row) {
        int64_t column = 0;
        for (; column + kRegistersAtOnce * kLanes <= a_.value_depth; column += kRegistersAtOnce * kLanes)
            add_tile<Rows, kRegistersAtOnce>(values, stride, count, row, column);
        if constexpr (kRegistersAtOnce > 2)
            if (column + 2 * kLanes <= a_.value_depth) {
                add_tile<Rows, 2>(values, stride, count, row, column);
                column += 2 * kLanes;
            }
        for (; column < a_.value_depth; column += kLanes) add_tile<Rows, 1>(values, stride, count, row, column);
    }

    template <class Element>
    void add_values(const Element* values, int64_t stride, int64_t count) {
        by_rows([&](auto rows, int row) WEIGHTPAGER_INLINED {
            add_rows<decltype(rows)::value>(values, stride, count, row);
        });
    }

    void write() const {
        for (int r = 0; r < rows_; ++r) {
            float* to = a_.out + batch_ * a_.out_at.batch + head(r) * a_.out_at.head + token(r) * a_.out_at.token;
            const float scale = total_[r] > 0.0f ? 1.0f / total_[r] : 0.0f;
            const float* from = sums_ + r * width_;
            for (int64_t d = 0; d < a_.value_depth; ++d) to[d] = total_[r] == 0.0f ? 0.0f : from[d] * scale;
        }
    }

    const Attention& a_;
    const int64_t batch_, group_, first_row_;
    const int rows_;
    const int64_t width_;  // of a row of sums: whole registers
    int64_t first_position_ = 0, last_position_ = 0, least_ = 0, end_ = 0;
    // Whole registers of these are read, whatever the number of rows.
    float largest_[kQueriesAtOnce], total_[kQueriesAtOnce], base_[kQueriesAtOnce], rescale_[kQueriesAtOnce];
    float query_[kQueriesAtOnce * kDeepestHead], keys_[kDeepestHead * kKeysAtOnce];
    float scores_[kQueriesAtOnce * kKeysAtOnce], sums_[kQueriesAtOnce * kDeepestHead];
};

static_assert(sizeof(QueryTile) < kStackBytes / 2, "the rest of a thread's stack is its callers'");

void attend(const Attention& attention, int64_t batch, int64_t group, int64_t first_row, int64_t end_row) {
    for (int64_t row = first_row; row < end_row; row += kQueriesAtOnce) {
        const int64_t rows = end_row - row < kQueriesAtOnce ? end_row - row : kQueriesAtOnce;
        QueryTile(attention, batch, group, row, rows).run();
    }
}

}  // namespace
}  // namespace weightpager

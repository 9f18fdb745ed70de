// The KV cache: keys and values of earlier tokens, for each attention of a program.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "operators/vector/vectors.hpp"

namespace weightpager {

// Grows by blocks of tokens; keys lie in them as attention multiplies them: [batch, groups, depth, tokens], and values
// as [batch, groups, tokens, value depth], float32 or, for half of the bytes, rounded to float16. One thread at a time.
class KVCache {
   public:
    explicit KVCache(int64_t most_bytes, bool halves = false) : most_bytes_(most_bytes), halves_(halves) {}
    KVCache(const KVCache&) = delete;
    KVCache& operator=(const KVCache&) = delete;

    // Tokens that whole runs have left here.
    int64_t tokens() const { return tokens_; }
    int64_t batch() const { return batch_; }
    int64_t bytes() const { return bytes_; }
    bool halves() const { return halves_; }

    struct Shape {
        int64_t batch, groups, depth, value_depth;
    };

    // The tokens of a block: whole blocks are taken, however short a text is.
    static constexpr int64_t kBlock = kKeysAtOnce;
    // Bytes of a block of a layer, all of the batch's rows together.
    static int64_t block_bytes(const Shape& shape, bool halves);

    struct Layer {
        Shape shape{};
        std::vector<std::unique_ptr<uint8_t[]>> keys, values;  // [blocks]
        std::vector<const void*> key_blocks, value_blocks;
    };

    // The layer of an attention with room for so many tokens behind those that are there. Throws std::invalid_argument
    // where it isn't shaped as before, and std::length_error where it would take more than `most_bytes`.
    Layer& room_for(int64_t index, const Shape& shape, int64_t more);

    // The batch of a call, which tells a cache's first. Throws std::invalid_argument where it isn't as before.
    void take_batch(int64_t batch);

    // What has been written behind the tokens counts from now on.
    void keep(int64_t more) { tokens_ += more; }

    // The last tokens are forgotten, `tokens` of them stay. Without any, the cache is as a new one.
    void shorten(int64_t tokens);

    // Keys and values of some of a single text's tokens, in blocks of which the last one may not be full.
    struct Piece {
        struct Layer {
            Shape shape{};
            std::vector<uint8_t> keys, values;
        };
        int64_t tokens = 0;
        bool halves = false;
        std::vector<Layer> layers;

        int64_t bytes() const;
    };

    // A copy of the tokens from `start` to `stop`. Throws std::invalid_argument unless it is of one text and begins with a
    // block.
    Piece piece(int64_t start, int64_t stop) const;

    // A copy of a piece's first `tokens` comes behind the tokens that are there. Throws std::invalid_argument where it
    // doesn't fit them, and std::length_error where it would take more than `most_bytes`; then nothing has changed.
    void append(const Piece& piece, int64_t tokens);

    // Row i of the batch becomes what row `rows[i]` was. If memory runs out, all tokens are forgotten.
    void select(const std::vector<int64_t>& rows);

   private:
    void add_block(Layer& layer);
    void select_rows(Layer& layer, const std::vector<int64_t>& rows);

    const int64_t most_bytes_;
    const bool halves_;
    int64_t bytes_ = 0, tokens_ = 0, batch_ = 0;
    std::vector<Layer> layers_;
};

}  // namespace weightpager

#include "kv_cache.hpp"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "divide.hpp"

namespace weightpager {
namespace {

using Block = std::unique_ptr<uint8_t[]>;

// Of a batch row's keys or values in a block.
int64_t key_bytes(const KVCache::Shape& shape, bool halves) {
    return shape.groups * shape.depth * KVCache::kBlock * (halves ? 2 : 4);
}

int64_t value_bytes(const KVCache::Shape& shape, bool halves) {
    return shape.groups * shape.value_depth * KVCache::kBlock * (halves ? 2 : 4);
}

Block selected(const uint8_t* from, int64_t size, const std::vector<int64_t>& rows) {
    Block to(new uint8_t[rows.size() * static_cast<size_t>(size)]);
    for (size_t i = 0; i < rows.size(); ++i)
        std::copy_n(from + rows[i] * size, size, to.get() + static_cast<int64_t>(i) * size);
    return to;
}

}  // namespace

int64_t KVCache::block_bytes(const Shape& shape, bool halves) {
    return shape.batch * (key_bytes(shape, halves) + value_bytes(shape, halves));
}

void KVCache::take_batch(int64_t batch) {
    if (batch_ == 0) batch_ = batch;
    if (batch != batch_)
        throw std::invalid_argument("expected a KV cache for a batch of " + std::to_string(batch_) +
                                    " and heads as before, found a batch of " + std::to_string(batch));
}

KVCache::Layer& KVCache::room_for(int64_t index, const Shape& shape, int64_t more) {
    take_batch(shape.batch);
    if (index >= static_cast<int64_t>(layers_.size())) layers_.resize(static_cast<size_t>(index) + 1);
    Layer& layer = layers_[static_cast<size_t>(index)];
    if (layer.keys.empty()) {
        if (tokens_ != 0) throw std::invalid_argument("expected the KV cache of one program, found another's");
        layer.shape = shape;
    }
    const Shape& had = layer.shape;
    if (had.batch != shape.batch || had.groups != shape.groups || had.depth != shape.depth ||
        had.value_depth != shape.value_depth)
        throw std::invalid_argument("expected a KV cache for a batch of " + std::to_string(batch_) +
                                    " and heads as before, found a batch of " + std::to_string(shape.batch));
    while (static_cast<int64_t>(layer.keys.size()) * kBlock < tokens_ + more) add_block(layer);
    return layer;
}

void KVCache::add_block(Layer& layer) {
    const int64_t bytes = block_bytes(layer.shape, halves_);
    if (bytes_ + bytes > most_bytes_)
        throw std::length_error("expected keys and values of at most " + std::to_string(most_bytes_) + " bytes, found " +
                                std::to_string(bytes_ + bytes) + ": give fewer or shorter texts");
    // Zeros: of keys that aren't there yet products are computed, too, before they are thrown away.
    Block keys(new uint8_t[static_cast<size_t>(layer.shape.batch * key_bytes(layer.shape, halves_))]());
    Block values(new uint8_t[static_cast<size_t>(layer.shape.batch * value_bytes(layer.shape, halves_))]());
    const size_t blocks = layer.keys.size() + 1;
    layer.keys.reserve(blocks);
    layer.values.reserve(blocks);
    layer.key_blocks.reserve(blocks);
    layer.value_blocks.reserve(blocks);
    // Nothing below throws: a layer has as many keys as values, whenever memory runs out.
    layer.key_blocks.push_back(keys.get());
    layer.value_blocks.push_back(values.get());
    layer.keys.push_back(std::move(keys));
    layer.values.push_back(std::move(values));
    bytes_ += bytes;
}

// A block at a time, so that the old rows and the new ones never take memory together.
void KVCache::select_rows(Layer& layer, const std::vector<int64_t>& rows) {
    for (size_t i = 0; i < layer.keys.size(); ++i) {
        layer.keys[i] = selected(layer.keys[i].get(), key_bytes(layer.shape, halves_), rows);
        layer.key_blocks[i] = layer.keys[i].get();
        layer.values[i] = selected(layer.values[i].get(), value_bytes(layer.shape, halves_), rows);
        layer.value_blocks[i] = layer.values[i].get();
    }
    layer.shape.batch = static_cast<int64_t>(rows.size());
}

void KVCache::shorten(int64_t tokens) {
    if (tokens < 0 || tokens > tokens_)
        throw std::invalid_argument("expected 0 to " + std::to_string(tokens_) + " tokens, found " + std::to_string(tokens));
    tokens_ = tokens;
    if (tokens == 0) {  // of any batch and any program again
        layers_.clear();
        bytes_ = batch_ = 0;
    }
    const size_t blocks = static_cast<size_t>(divide_up(tokens, kBlock));
    for (Layer& layer : layers_)
        while (layer.keys.size() > blocks) {
            layer.keys.pop_back();
            layer.values.pop_back();
            layer.key_blocks.pop_back();
            layer.value_blocks.pop_back();
            bytes_ -= block_bytes(layer.shape, halves_);
        }
}

int64_t KVCache::Piece::bytes() const {
    int64_t bytes = 0;
    for (const Layer& layer : layers) bytes += static_cast<int64_t>(layer.keys.size() + layer.values.size());
    return bytes;
}

KVCache::Piece KVCache::piece(int64_t start, int64_t stop) const {
    if (batch_ != 1 || start < 0 || start >= stop || stop > tokens_ || start % kBlock != 0)
        throw std::invalid_argument("expected tokens of one text from a block of " + std::to_string(kBlock) +
                                    " on, found those from " + std::to_string(start) + " to " + std::to_string(stop) +
                                    " of " + std::to_string(tokens_) + " of a batch of " + std::to_string(batch_));
    Piece piece;
    piece.tokens = stop - start;
    piece.halves = halves_;
    for (const Layer& layer : layers_) {
        Piece::Layer& copy = piece.layers.emplace_back();
        copy.shape = layer.shape;
        if (layer.keys.empty()) continue;
        for (int64_t block = start / kBlock; block < divide_up(stop, kBlock); ++block) {
            const uint8_t* keys = layer.keys[static_cast<size_t>(block)].get();
            const uint8_t* values = layer.values[static_cast<size_t>(block)].get();
            copy.keys.insert(copy.keys.end(), keys, keys + key_bytes(layer.shape, halves_));
            copy.values.insert(copy.values.end(), values, values + value_bytes(layer.shape, halves_));
        }
    }
    return piece;
}

void KVCache::append(const Piece& piece, int64_t tokens) {
    if (piece.halves != halves_ || tokens_ % kBlock != 0 || (tokens_ != 0 && piece.layers.size() != layers_.size()))
        throw std::invalid_argument("expected a piece of this cache's program behind whole blocks, found another");
    if (tokens < 1 || tokens > piece.tokens)
        throw std::invalid_argument("expected 1 to " + std::to_string(piece.tokens) + " tokens of a piece, found " +
                                    std::to_string(tokens));
    try {
        for (size_t i = 0; i < piece.layers.size(); ++i)
            if (!piece.layers[i].keys.empty()) room_for(static_cast<int64_t>(i), piece.layers[i].shape, tokens);
        if (layers_.size() < piece.layers.size()) layers_.resize(piece.layers.size());
    } catch (...) {
        shorten(tokens_);  // blocks behind the tokens go again
        throw;
    }
    for (size_t i = 0; i < piece.layers.size(); ++i) {
        const Piece::Layer& from = piece.layers[i];
        const int64_t of_keys = key_bytes(from.shape, halves_), of_values = value_bytes(from.shape, halves_);
        for (int64_t j = 0; j < divide_up(tokens, kBlock) && !from.keys.empty(); ++j) {
            const size_t block = static_cast<size_t>(tokens_ / kBlock + j);
            std::copy_n(from.keys.data() + j * of_keys, of_keys, layers_[i].keys[block].get());
            std::copy_n(from.values.data() + j * of_values, of_values, layers_[i].values[block].get());
        }
    }
    keep(tokens);
}

void KVCache::select(const std::vector<int64_t>& rows) {
    if (rows.empty()) throw std::invalid_argument("expected rows that stay, found none");
    for (int64_t row : rows)
        if (row < 0 || row >= batch_)
            throw std::invalid_argument("expected rows from 0 to " + std::to_string(batch_ - 1) + ", found " + std::to_string(row));
    int64_t bytes = 0;
    for (const Layer& layer : layers_) {
        Shape shape = layer.shape;
        shape.batch = static_cast<int64_t>(rows.size());
        bytes += static_cast<int64_t>(layer.keys.size()) * block_bytes(shape, halves_);
    }
    if (bytes > most_bytes_)
        throw std::length_error("expected keys and values of at most " + std::to_string(most_bytes_) + " bytes, found " +
                                std::to_string(bytes));
    try {
        for (Layer& layer : layers_) select_rows(layer, rows);
    } catch (const std::bad_alloc&) {  // some blocks have other rows already
        shorten(0);
        throw;
    }
    bytes_ = bytes;
    batch_ = static_cast<int64_t>(rows.size());
}

}  // namespace weightpager

// Attention over grouped heads, with or without a KV cache.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "divide.hpp"
#include "families.hpp"
#include "half.hpp"
#include "parallel.hpp"

namespace weightpager {
namespace {

constexpr int64_t kMostAttentions = 1 << 16;

struct Remembered {
    bool tokens_first;   // before heads
    bool mask_is_input;  // of the call
};

// Of a view whose axes are as the layout says.
Heads heads_at(const View& view, bool tokens_first) {
    return {view.strides[0], view.strides[tokens_first ? 2 : 1], view.strides[tokens_first ? 1 : 2]};
}

// Of a mask that is an input of the call, how many keys it is about is known only then.
void take_mask(const Step& step, const Running& running, Attention& a) {
    const View& mask = step.recall<Remembered>().mask_is_input ? running.inputs[static_cast<size_t>(step.in[3].number)] : step.in[3];
    if (mask.sizes[0] != a.batch || mask.sizes[1] != a.keys)
        throw std::invalid_argument("attention: expected a mask " + text_of(Sizes{a.batch, a.keys}) + ", found " +
                                    text_of(mask.sizes));
    a.wide_mask = mask.type == Type::int64;
    a.mask = a.wide_mask ? static_cast<const void*>(running.data<int64_t>(mask)) : running.data<uint8_t>(mask);
    a.mask_row = mask.strides[0];
    a.mask_key = mask.strides[1];
}

// Writes new keys and values behind those that are remembered, as `narrow` makes them.
template <class Element, class Narrow>
void write_keys_and_values(const Attention& a, KVCache::Layer& layer, int64_t before, int threads, const Narrow& narrow) {
    parallel_for(a.batch * a.groups, threads, [&](int64_t i) {
        const float* key = a.key + i / a.groups * a.key_at.batch + i % a.groups * a.key_at.head;
        const float* value = a.value + i / a.groups * a.value_at.batch + i % a.groups * a.value_at.head;
        for (int64_t t = 0; t < a.queries; ++t) {
            const size_t block = static_cast<size_t>((before + t) / kKeysAtOnce);
            const int64_t column = (before + t) % kKeysAtOnce;
            Element* keys = reinterpret_cast<Element*>(layer.keys[block].get()) + i * a.depth * kKeysAtOnce + column;
            const float *new_key = key + t * a.key_at.token, *new_value = value + t * a.value_at.token;
            for (int64_t d = 0; d < a.depth; ++d) keys[d * kKeysAtOnce] = narrow(new_key[d]);
            std::transform(new_value, new_value + a.value_depth,
                           reinterpret_cast<Element*>(layer.values[block].get()) + (i * kKeysAtOnce + column) * a.value_depth,
                           narrow);
        }
    });
}

bool is_causal(const Step& step) { return std::get<bool>(step.node->attributes.find("causal")->second); }

KVCache::Shape cached_shape(const Step& step) {
    const View &key = step.in[1], &value = step.in[2];
    return {key.sizes[0], key.sizes[step.recall<Remembered>().tokens_first ? 2 : 1], key.sizes[3], value.sizes[3]};
}

int64_t layer_number(const Step& step) { return number_of<int64_t>(step, "index"); }

// What a step attends to in one way, without cache and mask.
Attention described(const Step& step, const Running& running) {
    const View &query = step.in[0], &key = step.in[1], &value = step.in[2];
    const bool tokens_first = step.recall<Remembered>().tokens_first;
    const size_t head = tokens_first ? 2 : 1, token = tokens_first ? 1 : 2;
    Attention a{};
    a.query = running.data(query);
    a.key = running.data(key);
    a.value = running.data(value);
    a.out = running.data(step.out[0]);
    a.query_at = heads_at(query, tokens_first);
    a.key_at = heads_at(key, tokens_first);
    a.value_at = heads_at(value, tokens_first);
    a.out_at = heads_at(step.out[0], tokens_first);
    a.batch = query.sizes[0];
    a.heads = query.sizes[head];
    a.groups = key.sizes[head];
    a.queries = query.sizes[token];
    a.keys = key.sizes[token];
    a.depth = query.sizes[3];
    a.value_depth = value.sizes[3];
    a.scale = number_of<float>(step, "scale");
    return a;
}

// Has the cache take the new keys and values in, and the attention read all from there.
void append_to_cache(const Step& step, const Running& running, Attention& a) {
    const int64_t before = running.cache->tokens();
    auto& layer = running.cache->room_for(layer_number(step), cached_shape(step), a.queries);
    const int threads = running.worth(a.batch * a.groups * a.queries * a.depth);
    a.halves = running.cache->halves();
    if (a.halves)
        write_keys_and_values<Half>(a, layer, before, threads, to_half);
    else
        write_keys_and_values<float>(a, layer, before, threads, [](float value) { return value; });
    a.key_blocks = layer.key_blocks.data();
    a.value_blocks = layer.value_blocks.data();
    a.keys += before;
}

void attend(const Attention& a, const Running& running, int64_t seen) {
    const int64_t rows = a.rows(), pieces = divide_up(rows, kQueriesAtOnce), share = divide_up(rows, pieces);
    const int threads = running.worth(product_of({a.batch, a.heads, a.queries, seen, a.depth}) / 8);
    parallel_for(a.batch * a.groups * pieces, threads, [&](int64_t i) {
        const int64_t group = i / pieces, first = i % pieces * share;
        running.vectors.attend(a, group / a.groups, group % a.groups, first, std::min(rows, first + share));
    });
}

// For each key where its run of equal numbers begins and ends; the greatest length of any.
int64_t find_segments(const int64_t* numbers, int64_t keys, int64_t* segments) {
    int64_t longest = 0;
    for (int64_t first = 0, end = 0; first < keys; first = end) {
        while (end < keys && numbers[end] == numbers[first]) ++end;
        std::fill(segments + first, segments + end, first);
        std::fill(segments + keys + first, segments + keys + end, end);
        longest = std::max(longest, end - first);
    }
    return longest;
}

void run_segment_attention(const Step& step, const Running& running) {
    Attention a = described(step, running);
    if (a.batch == 0 || a.queries == 0 || a.heads == 0) return;
    auto* segments = running.data<int64_t>(View{Type::int64, {}, {}, Memory::buffer, step.scratch.number, 0});
    const auto* numbers = running.data<int64_t>(step.in[3]);
    int64_t longest = 0;
    for (int64_t row = 0; row < a.batch; ++row)
        longest = std::max(longest, find_segments(numbers + row * a.keys, a.keys, segments + 2 * row * a.keys));
    a.segments = segments;
    attend(a, running, longest);
}

void run_attention(const Step& step, const Running& running) {
    Attention a = described(step, running);
    a.softcap = number_of<float>(step, "softcap");
    a.causal = is_causal(step);
    a.window = number_of<int64_t>(step, "window");
    if (a.batch == 0 || a.queries == 0) return;
    if (running.cache != nullptr && a.causal) append_to_cache(step, running, a);
    if (step.in[3].number >= 0) take_mask(step, running, a);
    if (a.heads == 0) return;  // the cache has the keys and values by now
    attend(a, running, a.keys);
}

// What all attentions are like: three operands of heads, a scale and a layout. Says whether tokens are before heads.
bool infer_heads(Inference& inference) {
    const std::string layout = inference.word("layout");
    inference.expect(layout == "bhtd" || layout == "bthd", "attribute layout: expected bhtd or bthd, found ", layout);
    const bool tokens_first = layout == "bthd";
    const size_t head = tokens_first ? 2 : 1, token = tokens_first ? 1 : 2;
    for (size_t i : {size_t{0}, size_t{1}, size_t{2}}) {
        inference.expect_type(i, Type::float32);
        inference.expect(inference.in(i).rank() == 4, "operand ", i, ": expected four axes, found ", inference.in(i));
        inference.dense_rows(i);
    }
    const View &query = inference.in(0), &key = inference.in(1), &value = inference.in(2);
    const int64_t batch = query.sizes[0], heads = query.sizes[head], groups = key.sizes[head], keys = key.sizes[token];
    inference.expect(key.sizes[0] == batch && value.sizes[0] == batch && groups > 0 && heads % groups == 0 &&
                         value.sizes[head] == groups && value.sizes[token] == keys && key.sizes[3] == query.sizes[3],
                     "expected queries, keys and values of one batch and grouped heads, found ", query.sizes, ", ",
                     key.sizes, " and ", value.sizes);
    inference.expect(query.sizes[3] <= kDeepestHead && value.sizes[3] <= kDeepestHead, "expected heads of at most ",
                     kDeepestHead, " features, found ", query.sizes);
    inference.number("scale");
    inference.want_products({batch, heads, query.sizes[token], keys, query.sizes[3] + value.sizes[3]});
    return tokens_first;
}

// Tokens are written before heads, and looked at as the layout has it: what follows wants a token's heads together.
void give_heads(Inference& inference, bool tokens_first) {
    const View& query = inference.in(0);
    View out = inference.own(Type::float32, {query.sizes[0], query.sizes[tokens_first ? 1 : 2],
                                             query.sizes[tokens_first ? 2 : 1], inference.in(2).sizes[3]});
    if (!tokens_first) {
        std::swap(out.sizes[1], out.sizes[2]);
        std::swap(out.strides[1], out.strides[2]);
    }
    inference.give_view(out);
}

void infer_segment_attention(Inference& inference) {
    const bool tokens_first = infer_heads(inference);
    const int64_t batch = inference.in(0).sizes[0], keys = inference.in(1).sizes[tokens_first ? 1 : 2];
    inference.expect(inference.in(0).sizes[tokens_first ? 1 : 2] == keys, "expected as many keys as queries, found ",
                     inference.in(1).sizes);
    inference.expect_type(3, Type::int64);
    inference.expect(inference.dense(3).sizes == Sizes{batch, keys}, "operand 3: expected int64 [batch, keys], found ",
                     inference.in(3));
    inference.want_scratch(inference.elements_of({2, batch, keys}) * int64_t{sizeof(int64_t)});
    inference.remember(Remembered{tokens_first, false});
    give_heads(inference, tokens_first);
    inference.run_by(&run_segment_attention);
}

void infer_attention(Inference& inference) {
    const bool tokens_first = infer_heads(inference), causal = inference.flag("causal");
    const View &query = inference.in(0), &key = inference.in(1);
    const size_t token = tokens_first ? 1 : 2;
    const int64_t window = inference.integer("window"), index = inference.integer("index");
    inference.expect(window >= 0 && window <= kLargestAxis && index >= 0 && index < kMostAttentions,
                     "expected a window of at least 0, and an index from 0 to 65535");
    inference.number("softcap");
    inference.expect(!causal || query.sizes[token] == key.sizes[token], "expected as many keys as queries, found ", key.sizes);
    if (inference.has(3)) {
        const View& mask = inference.in(3);
        inference.expect((mask.type == Type::int64 || mask.type == Type::boolean) && mask.rank() == 2,
                         "operand 3: expected int64 or bool [batch, keys], found ", mask);
    }
    inference.remember(Remembered{tokens_first, inference.has(3) && inference.is_mask(3)});
    give_heads(inference, tokens_first);
    inference.run_by(&run_attention);
}

}  // namespace

std::optional<std::pair<int64_t, KVCache::Shape>> cached_layer(const Step& step) {
    if (step.run != &run_attention || !is_causal(step)) return std::nullopt;
    return std::make_pair(layer_number(step), cached_shape(step));
}

std::vector<Operator> attention_operators() {
    return {{"attention", 1, infer_attention}, {"segment_attention", 1, infer_segment_attention}};
}

}  // namespace weightpager

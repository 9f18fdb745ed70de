// Rotary embeddings. Sines and cosines are computed once for all nodes that turn by the same positions.
#include <cmath>
#include <cstring>

#include "families.hpp"
#include "parallel.hpp"

namespace weightpager {
namespace {

// [rows, 2, half]: cosines, then sines. A row has one position, or one for each frequency.
void fill_table(const Step& step, const Running& running, float* table) {
    const View &positions = step.in[1], &frequencies = step.in[2];
    const auto* at = running.data<int64_t>(positions);
    const float* frequency = running.data(frequencies);
    const float scaling = number_of<float>(step, "scaling");
    const int64_t rows = positions.sizes[0] * positions.sizes[1], half = frequencies.elements();
    const int64_t next_row = positions.rank() == 3 ? half : 1, next = positions.rank() == 3 ? 1 : 0;
    parallel_for(rows, running.worth(32 * rows * half), [&](int64_t row) {
        for (int64_t i = 0; i < half; ++i) {
            const float angle = static_cast<float>(at[row * next_row + i * next]) * frequency[i];
            table[2 * row * half + i] = std::cos(angle) * scaling;
            table[(2 * row + 1) * half + i] = std::sin(angle) * scaling;
        }
    });
}

void turn(const float* x, float* y, const float* cosine, const float* sine, int64_t half, bool interleaved) {
    const int64_t next = interleaved ? 1 : half, step = interleaved ? 2 : 1;
    if (!interleaved) {
        for (int64_t i = 0; i < half; ++i) {
            const float first = x[i], second = x[half + i];
            y[i] = first * cosine[i] - second * sine[i];
            y[half + i] = second * cosine[i] + first * sine[i];
        }
        return;
    }
    for (int64_t i = 0; i < half; ++i) {
        const float first = x[i * step], second = x[i * step + next];
        y[i * step] = first * cosine[i] - second * sine[i];
        y[i * step + next] = second * cosine[i] + first * sine[i];
    }
}

struct Rotary {
    bool fills_table;   // others that turn by the same positions find the table filled
    bool tokens_first;  // before heads
    bool interleaved;
};

void run_rotary(const Step& step, const Running& running) {
    const View &x = step.in[0], &out = step.out[0];
    float* table = running.data(View{Type::float32, {}, {}, Memory::buffer, step.scratch.number, 0});
    const Rotary& rotary = step.recall<Rotary>();
    const size_t token = rotary.tokens_first ? 1 : 2, head = 3 - token;
    if (rotary.fills_table) fill_table(step, running, table);
    const int64_t half = step.in[2].elements(), tokens = x.sizes[token], heads = x.sizes[head], depth = x.sizes[3];
    const bool one_row = step.in[1].sizes[0] == 1;
    parallel_for(x.sizes[0] * tokens, running.worth(2 * x.elements()), [&](int64_t i) {
        const int64_t row = i / tokens, t = i % tokens, at = one_row ? t : i;
        const float* cosine = table + 2 * at * half;
        for (int64_t h = 0; h < heads; ++h) {
            const float* from = running.data(x) + row * x.strides[0] + t * x.strides[token] + h * x.strides[head];
            float* to = running.data(out) + row * out.strides[0] + t * out.strides[token] + h * out.strides[head];
            turn(from, to, cosine, cosine + half, half, rotary.interleaved);
            std::memcpy(to + 2 * half, from + 2 * half, static_cast<size_t>(depth - 2 * half) * sizeof(float));
        }
    });
}

// Keys must tell numbers apart that print alike.
std::string text_of_bits(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return std::to_string(bits);
}

void infer_rotary(Inference& inference) {
    const std::string layout = inference.word("layout");
    inference.expect(layout == "bhtd" || layout == "bthd", "attribute layout: expected bhtd or bthd, found ", layout);
    const bool tokens_first = layout == "bthd", interleaved = inference.flag("interleaved");
    inference.expect_type(0, Type::float32);
    inference.expect_type(1, Type::int64);
    inference.expect_type(2, Type::float32);
    const double scaling = inference.number("scaling");
    inference.expect(inference.in(0).rank() == 4, "operand 0: expected four axes, found ", inference.in(0));
    const View &x = inference.dense_rows(0), &positions = inference.dense(1), &frequencies = inference.dense(2);
    const int64_t tokens = x.sizes[tokens_first ? 1 : 2];
    const bool each = positions.rank() == 3 && frequencies.rank() == 1 && positions.sizes[2] == frequencies.sizes[0];
    inference.expect((positions.rank() == 2 || each) && (positions.sizes[0] == 1 || positions.sizes[0] == x.sizes[0]) &&
                         positions.sizes[1] == tokens,
                     "operand 1: expected a position of each token, or one for each frequency, found ", positions.sizes, " for ", x.sizes);
    inference.expect(frequencies.rank() == 1 && 2 * frequencies.sizes[0] <= x.sizes[3],
                     "operand 2: expected at most half as many frequencies as features, found ", frequencies.sizes, " for ",
                     x.sizes);
    const std::string key = "rotary " + inference.name_of(1) + " " + inference.name_of(2) + " " + text_of_bits(scaling);
    const int64_t bytes = inference.elements_of({positions.sizes[0], positions.sizes[1], frequencies.sizes[0], 2}) * int64_t{sizeof(float)};
    inference.remember(Rotary{inference.share(key, bytes), tokens_first, interleaved});
    View out = inference.own(Type::float32, x.sizes);
    inference.give_view(out);
    inference.run_by(&run_rotary);
}

}  // namespace

std::vector<Operator> rotary_operators() { return {{"rotary", 1, infer_rotary}}; }

}  // namespace weightpager

// Products with weights, and rows of tables.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "bfloat16.hpp"
#include "block_rows.hpp"
#include "divide.hpp"
#include "families.hpp"
#include "parallel.hpp"
#include "products.hpp"

namespace weightpager {
namespace {

// Of x, also where rows have no elements: what comes of such a row is the bias.
int64_t rows_of(const View& x) {
    int64_t rows = 1;
    for (int64_t i = 0; i + 1 < x.rank(); ++i) rows *= x.sizes[static_cast<size_t>(i)];
    return rows;
}

void finish(const Running& running, int64_t missing) {
    if (missing != kAllResident) *running.missing = missing;
}

// x [rows, inputs] without gaps.
Problem product_of(const PagedMatrix& weight, const View& x, const float* bias, float* y, Unary activation,
                   const Running& running, const float* addend = nullptr) {
    return {weight, running.data(x), y, Dtype::float32, rows_of(x), bias, Dtype::float32, activation, addend};
}

// An addend [rows, outputs] is for weights in blocks alone.
void multiply(const Parameter& weight, const View& x, const float* bias, float* y, Unary activation, const Running& running,
              const float* addend = nullptr) {
    if (weight.paged) {
        const Problem problem = product_of(*weight.paged, x, bias, y, activation, running, addend);
        return finish(running, paged_linear(running.kernel, problem, running.threads));
    }
    Dense dense{running.data(x), x.last(), weight.data, weight.type == Type::bfloat16, bias, y, weight.sizes[0],
                weight.sizes[1], activation};
    multiply_dense(dense, rows_of(x), weight.sizes[0], running);
}

bool is_weight(const Parameter& weight) {
    return !weight.elsewhere && (weight.paged || weight.type == Type::float32 || weight.type == Type::bfloat16);
}

const float* optional(const Step& step, size_t i, const Running& running) {
    return i < step.in.size() && step.in[i].number >= 0 ? running.data(step.in[i]) : nullptr;
}

const Parameter& weight_of(const Step& step, size_t i, const Running& running) {
    return running.parameters[static_cast<size_t>(step.in[i].number)];
}

// Operands of a product with a weight that has a low-rank part: A [rank, inputs] and B [outputs, rank].
struct LowRank {
    size_t down, up;

    bool given(const Step& step) const { return down < step.in.size() && step.in[down].number >= 0; }
};

// Ask for the blocks of a small weight before anything waits for them: sweeps ask for a few at a time, as large ones need it.
void fetch(const Parameter& weight) {
    if (!weight.paged) return;
    const PagedMatrix& p = *weight.paged;
    const int64_t bytes = block_bytes(p), kept = p.crow_indices[grid_rows(p)];
    for (int64_t k = 0; k < kept; ++k) {
        const int64_t page = p.locations[k] / p.blocks_per_page, place = p.locations[k] % p.blocks_per_page;
        const int64_t slot = p.page_table[page];
        if (slot < 0 || slot >= p.slots) return;
        const uint8_t* block = p.arena + slot * p.page_bytes + place * bytes;
        for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(block + line, 0, 2);
    }
}

// x Aᵀ Bᵀ, in scratch memory from a number of floats on, by which this moves it; null without a low-rank part. It comes
// first, as the weight's product is added to it as that is written.
const float* multiply_low_rank(const Step& step, const LowRank& part, const Running& running, int64_t& offset) {
    if (!part.given(step)) return nullptr;
    const View& x = step.in[0];
    const Parameter &down = weight_of(step, part.down, running), &up = weight_of(step, part.up, running);
    const int64_t rows = rows_of(x), rank = down.sizes[0];
    const View inner{Type::float32, {rows, rank}, {rank, 1}, Memory::buffer, step.scratch.number, offset};
    float* const values = running.data(inner);
    float* const sums = values + rows * rank;
    offset += rows * (rank + up.sizes[0]);
    if (rows == 1) {
        fetch(down);
        fetch(up);
    }
    multiply(down, x, nullptr, values, Unary::none, running);
    multiply(up, inner, nullptr, sums, Unary::none, running);
    return sums;
}

constexpr LowRank kOfWeight{3, 4};

void run_linear(const Step& step, const Running& running) {
    int64_t offset = 0;
    const float* sums = multiply_low_rank(step, kOfWeight, running, offset);
    multiply(weight_of(step, 1, running), step.in[0], optional(step, 2, running), running.data(step.out[0]),
             step.recall<Unary>(), running, sums);
}

// x as rows of as many inputs as a weight has.
Sizes expect_factor(Inference& inference, size_t i) {
    inference.expect_type(0, Type::float32);
    inference.expect(!inference.is_parameter(0) || inference.parameter(0).plain(),
                     "operand 0: expected an array of float32, found a weight in blocks or rows that come on demand");
    const View& x = inference.dense(0);
    const Parameter& weight = inference.weight(i);
    inference.expect(weight.elsewhere || is_weight(weight), "operand ", i, ": expected a weight, found ", weight.type);
    inference.expect(!weight.elsewhere, weight.name, ": expected a weight, found rows that come on demand");
    inference.expect(weight.sizes.size() == 2 && !x.sizes.empty() && x.sizes.back() == weight.sizes[1],
                     "operand 0: expected [..., inputs] for ", weight.name, " ", weight.sizes, ", found ", x.sizes);
    inference.want_products({rows_of(x), weight.sizes[0], weight.sizes[1]});
    Sizes sizes = x.sizes;
    sizes.back() = weight.sizes[0];
    return sizes;
}

// How many floats of scratch memory the low-rank part of a weight takes.
int64_t expect_low_rank(Inference& inference, size_t weight, const LowRank& part) {
    const Parameter& to = inference.weight(weight);
    inference.expect(to.paged.has_value(), "operand ", weight, ": expected a weight in blocks beside a low-rank part");
    const int64_t rows = rows_of(inference.in(0)), rank = expect_factor(inference, part.down).back();
    const Parameter& up = inference.weight(part.up);
    inference.expect(is_weight(up) && up.sizes == Sizes{to.sizes[0], rank}, "operand ", part.up,
                     ": expected a weight ", Sizes{to.sizes[0], rank}, ", found ", up.sizes);
    inference.want_products({rows, to.sizes[0], rank});
    return rows * (rank + to.sizes[0]);
}

void infer_linear(Inference& inference) {
    const Sizes sizes = expect_factor(inference, 1);
    if (inference.has(2)) {
        inference.expect_type(2, Type::float32);
        inference.expect(inference.dense(2).sizes == Sizes{sizes.back()}, "operand 2: expected ", Sizes{sizes.back()},
                         ", found ", inference.in(2).sizes);
    }
    inference.remember(activation_of(inference));
    inference.give(Type::float32, sizes);
    if (inference.has(kOfWeight.down))
        inference.want_scratch(expect_low_rank(inference, 1, kOfWeight) * int64_t{sizeof(float)});
    inference.run_by(&run_linear);
}

constexpr LowRank kOfGate{3, 4}, kOfUp{5, 6};

void run_paged_gated(const Step& step, const Running& running) {
    int64_t offset = 0;
    const auto product = [&](size_t i, const LowRank& part) {
        return product_of(*weight_of(step, i, running).paged, step.in[0], nullptr, running.data(step.out[0]), Unary::none,
                          running, multiply_low_rank(step, part, running, offset));
    };
    const Problem gate = product(1, kOfGate), up = product(2, kOfUp);
    finish(running, paged_gated(running.kernel, gate, up, step.recall<Unary>(), running.threads));
}

void run_gated(const Step& step, const Running& running) {
    float* y = running.data(step.out[0]);
    const int64_t count = step.out[0].elements();
    float* gate = running.data(View{Type::float32, {}, {}, Memory::buffer, step.scratch.number, 0});
    int64_t offset = count;  // behind the gate's outputs
    const float* of_gate = multiply_low_rank(step, kOfGate, running, offset);
    multiply(weight_of(step, 1, running), step.in[0], nullptr, gate, step.recall<Unary>(), running, of_gate);
    const float* of_up = multiply_low_rank(step, kOfUp, running, offset);
    multiply(weight_of(step, 2, running), step.in[0], nullptr, y, Unary::none, running, of_up);
    running.vectors.binary(Binary::multiply, gate, 1, y, 1, y, count);
}

bool alike(const PagedMatrix& a, const PagedMatrix& b) {
    return a.block_rows == b.block_rows && a.block_cols == b.block_cols && a.weight_dtype == b.weight_dtype;
}

void infer_gated(Inference& inference) {
    const Sizes sizes = expect_factor(inference, 1);
    inference.expect(expect_factor(inference, 2) == sizes, "operand 2: expected a weight of as many outputs as operand 1");
    const Unary activation = activation_of(inference);
    const Parameter &gate = inference.weight(1), &up = inference.weight(2);
    const View out = inference.give(Type::float32, sizes);
    const bool known = activation == Unary::silu || activation == Unary::gelu_tanh;
    inference.remember(activation);
    int64_t low_rank = 0;
    if (inference.has(kOfGate.down)) low_rank += expect_low_rank(inference, 1, kOfGate);
    if (inference.has(kOfUp.down)) low_rank += expect_low_rank(inference, 2, kOfUp);
    const bool fused = known && gate.paged && up.paged && alike(*gate.paged, *up.paged);
    if (!fused || low_rank > 0)
        inference.want_scratch((low_rank + (fused ? 0 : out.elements())) * int64_t{sizeof(float)});
    inference.run_by(fused ? &run_paged_gated : &run_gated);
}

void check_ids(const int64_t* ids, int64_t count, int64_t rows) {
    for (int64_t i = 0; i < count; ++i)
        if (ids[i] < 0 || ids[i] >= rows)
            throw std::out_of_range("expected ids from 0 to " + std::to_string(rows - 1) + ", found " + std::to_string(ids[i]));
}

void run_embedding(const Step& step, const Running& running) {
    const Parameter& table = weight_of(step, 0, running);
    const auto* ids = running.data<int64_t>(step.in[1]);
    float* out = running.data(step.out[0]);
    const int64_t count = step.in[1].elements(), columns = table.sizes[1];
    check_ids(ids, count, table.sizes[0]);
    if (table.paged) {
        const PagedMatrix& p = *table.paged;
        return look_up_rows({p.arena, divide_up(p.in_features, p.block_cols), p.block_rows, p.block_cols,
                             p.weight_dtype, columns},
                            ids, count, out, false);
    }
    for (int64_t i = 0; i < count; ++i)
        if (table.type == Type::bfloat16)
            std::transform(static_cast<const uint16_t*>(table.data) + ids[i] * columns,
                           static_cast<const uint16_t*>(table.data) + (ids[i] + 1) * columns, out + i * columns, from_bfloat16);
        else
            std::memcpy(out + i * columns, static_cast<const float*>(table.data) + ids[i] * columns,
                        static_cast<size_t>(columns) * sizeof(float));
}

// The caller looks these up before it goes on behind this node (`Program::write`).
void leave_to_caller(const Step&, const Running&) {}

void infer_embedding(Inference& inference) {
    inference.expect_type(1, Type::int64);
    const View& ids = inference.dense(1);
    const Parameter& table = inference.weight(0);
    inference.expect(table.sizes.size() == 2 && (!table.paged || table.table), table.name,
                     ": expected a table [rows, columns] all of which is in memory");
    inference.expect(table.paged || table.elsewhere || table.type == Type::float32 || table.type == Type::bfloat16,
                     table.name, ": expected float32 or bfloat16, found ", table.type);
    Sizes sizes = ids.sizes;
    sizes.push_back(table.sizes[1]);
    inference.give(Type::float32, sizes);
    inference.run_by(table.elsewhere ? &leave_to_caller : &run_embedding);
}

// y[m, n] = x[m, k] . y[k, n], for each of the axes before.
void run_matmul(const Step& step, const Running& running) {
    const View &x = step.in[0], &y = step.in[1], &out = step.out[0];
    const size_t last = out.sizes.size() - 1;
    const int64_t rows = out.sizes[last - 1], columns = out.sizes[last], inner = x.sizes.back();
    int64_t batches = 1;
    for (size_t i = 0; i + 1 < last; ++i) batches *= out.sizes[i];
    parallel_for(batches * rows, running.worth(batches * rows * columns * inner), [&](int64_t i) {
        int64_t left = i / rows, at_x = i % rows * x.strides[x.strides.size() - 2], at_y = 0;
        for (size_t axis = last - 1; axis-- > 0;) {
            const int64_t index = left % out.sizes[axis];
            left /= out.sizes[axis];
            for (const View* view : {&x, &y}) {
                const size_t skipped = out.sizes.size() - view->sizes.size();
                if (axis < skipped || view->sizes[axis - skipped] == 1) continue;
                (view == &x ? at_x : at_y) += index * view->strides[axis - skipped];
            }
        }
        const float *a = running.data(x) + at_x, *b = running.data(y) + at_y;
        float* to = running.data(out) + i * columns;
        std::fill_n(to, columns, 0.0f);
        for (int64_t k = 0; k < inner; ++k)
            for (int64_t n = 0; n < columns; ++n) to[n] += a[k * x.strides.back()] * b[k * y.strides[y.strides.size() - 2] + n];
    });
}

void infer_matmul(Inference& inference) {
    for (size_t i : {size_t{0}, size_t{1}}) {
        inference.expect_type(i, Type::float32);
        inference.expect(inference.in(i).rank() >= 2, "operand ", i, ": expected a matrix, found ", inference.in(i));
        inference.dense_rows(i);
    }
    const View &x = inference.in(0), &y = inference.in(1);
    const int64_t inner = x.sizes.back();
    inference.expect(y.sizes[y.sizes.size() - 2] == inner, "operand 1: expected ", inner, " rows, found ", y.sizes);
    // The matrices broadcast by the axes before their own.
    View &left = inference.change(0), &right = inference.change(1);
    const View whole[] = {left, right};
    for (View* each : {&left, &right}) each->sizes.resize(each->sizes.size() - 2);
    Sizes sizes = broadcast(inference, {0, 1});
    left = whole[0];
    right = whole[1];
    sizes.push_back(x.sizes[x.sizes.size() - 2]);
    sizes.push_back(y.sizes.back());
    const View& out = inference.give(Type::float32, sizes);
    inference.want_products({rows_of(out), out.last(), inner});
    inference.run_by(&run_matmul);
}

}  // namespace

void multiply_dense(const Dense& dense, int64_t rows, int64_t outputs, const Running& running) {
    // Pieces of rows and outputs that don't depend on the number of threads: few rows share a weight's rows.
    constexpr int64_t kRows = 48, kOutputs = 32;
    const int64_t row_pieces = divide_up(rows, kRows), output_pieces = divide_up(outputs, kOutputs);
    parallel_for(row_pieces * output_pieces, running.worth(rows * outputs * dense.inputs / 8), [&](int64_t i) {
        const int64_t row = i / output_pieces * kRows, output = i % output_pieces * kOutputs;
        running.vectors.dense(dense, row, std::min(rows, row + kRows), output, std::min(outputs, output + kOutputs));
    });
}

Unary activation_of(const Inference& inference) {
    static const char* const kNames[] = {"none", "gelu", "gelu_tanh", "relu", "silu", "tanh", "quick_gelu"};
    const std::string name = inference.word("activation");
    for (int i = 0; i < 7; ++i)
        if (name == kNames[i]) return static_cast<Unary>(i);
    inference.fail("attribute activation: expected none, gelu, gelu_tanh, relu, silu, tanh or quick_gelu, found ", name);
}

std::vector<Operator> product_operators() {
    return {
        {"embedding", 1, infer_embedding, true},
        {"linear", 1, infer_linear, true},
        {"gated_linear", 1, infer_gated, true},
        {"matmul", 1, infer_matmul},
    };
}

}  // namespace weightpager

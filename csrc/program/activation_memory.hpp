// Where buffers lie among the activations: those that are never needed at once share memory.
#pragma once

#include <cstdint>
#include <vector>

namespace weightpager {

struct Buffer {
    int64_t bytes;
    int64_t first, last;  // steps between which it is needed, both included
};

struct ActivationLayout {
    std::vector<int64_t> offsets;
    int64_t bytes = 0;
};

// The largest first, each at the lowest place that is free while it is needed (Pisarchyk and Lee, Efficient Memory
// Management for Deep Neural Net Inference: greedy by size). Buffers come in the order of their first steps. Throws
// std::invalid_argument where too many are needed at once: each is compared with those alone, so that the time grows with
// the buffers and not with their square.
ActivationLayout lay_out(const std::vector<Buffer>& buffers);

}  // namespace weightpager

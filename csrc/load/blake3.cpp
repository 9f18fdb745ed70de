#include "blake3.hpp"

#include <cstring>

#include "divide.hpp"
#include "processor.hpp"

namespace weightpager {

extern const Hasher hash_generic;
#if defined(WEIGHTPAGER_X86)
extern const Hasher hash_avx2, hash_avx512;
#endif

namespace {

constexpr size_t kChunk = 1024, kBlock = 64, kMostLanes = 16;
constexpr uint32_t kChunkStart = 1, kChunkEnd = 2, kParent = 4, kRoot = 8;

using Node = std::array<uint32_t, 8>;

// Nodes of one kind; compressed whenever there are enough to fill the registers.
class Level {
   public:
    Level(const Hasher& hasher, size_t bytes, uint32_t flags, uint32_t start, uint32_t end)
        : hasher_(hasher), blocks_(bytes == 0 ? 1 : divide_up(bytes, kBlock)),
          last_(bytes - (blocks_ - 1) * kBlock), flags_(flags), start_(start), end_(end) {}

    void add(const uint8_t* input, size_t counter, Node* result) {
        inputs_[waiting_] = input;
        counters_[waiting_] = static_cast<uint32_t>(counter);  // buffers have less than 4 TiB
        results_[waiting_] = result;
        if (++waiting_ == hasher_.lanes) flush();
    }

    // Every input is read before any result is written.
    void flush() {
        if (waiting_ == 0) return;
        for (size_t lane = waiting_; lane < hasher_.lanes; ++lane) {
            inputs_[lane] = inputs_[0];
            counters_[lane] = counters_[0];
        }
        uint32_t found[kMostLanes * 8];
        hasher_.compress(inputs_, blocks_, last_, counters_, flags_, start_, end_, found);
        for (size_t lane = 0; lane < waiting_; ++lane) std::memcpy(results_[lane]->data(), found + 8 * lane, sizeof(Node));
        waiting_ = 0;
    }

   private:
    const Hasher& hasher_;
    const size_t blocks_, last_;
    const uint32_t flags_, start_, end_;
    const uint8_t* inputs_[kMostLanes];
    uint32_t counters_[kMostLanes];
    Node* results_[kMostLanes];
    size_t waiting_ = 0;
};

std::vector<const Hasher*> find_hashers() {
    std::vector<const Hasher*> found;
#if defined(WEIGHTPAGER_X86)
    const Processor& has = processor();
    if (has.avx512f && has.avx512vl) found.push_back(&hash_avx512);
    if (has.avx2) found.push_back(&hash_avx2);
#endif
    found.push_back(&hash_generic);
    return found;
}

// Buffers of the same length, and the nodes of their trees that have no parent yet: [buffers][stride].
class Forest {
   public:
    Forest(const Hasher& hasher, const uint8_t* const* buffers, size_t count, size_t length)
        : hasher_(hasher), buffers_(buffers), count_(count), length_(length),
          stride_(length == 0 ? 1 : divide_up(length, kChunk)), left_(stride_), nodes_(count * stride_) {}

    void digest(Digest* digests) {
        compress_chunks();
        while (left_ > 1) compress_parents();
        for (size_t i = 0; i < count_; ++i) std::memcpy(digests[i].data(), nodes_[i * stride_].data(), sizeof(Digest));
    }

   private:
    // A chunk that isn't full, or that is the whole tree, differs from the others.
    void compress_chunks() {
        const bool alone = stride_ == 1;
        const size_t full = alone ? 0 : length_ / kChunk, rest = length_ - full * kChunk;
        Level chunks(hasher_, kChunk, 0, kChunkStart, kChunkEnd);
        for (size_t i = 0; i < count_; ++i)
            for (size_t chunk = 0; chunk < full; ++chunk)
                chunks.add(buffers_[i] + chunk * kChunk, chunk, &nodes_[i * stride_ + chunk]);
        chunks.flush();
        if (full == stride_) return;
        std::vector<uint8_t> padded(count_ * kChunk);
        Level lasts(hasher_, rest, 0, kChunkStart, kChunkEnd | (alone ? kRoot : 0));
        for (size_t i = 0; i < count_; ++i) {
            if (rest != 0) std::memcpy(&padded[i * kChunk], buffers_[i] + full * kChunk, rest);
            lasts.add(&padded[i * kChunk], full, &nodes_[i * stride_ + full]);
        }
        lasts.flush();
    }

    // Neighbours become one node, in place; one without a neighbour goes up as it is.
    void compress_parents() {
        const size_t pairs = left_ / 2;
        Level parents(hasher_, sizeof(Node) * 2, kParent | (left_ == 2 ? kRoot : 0), 0, 0);
        for (size_t i = 0; i < count_; ++i)
            for (size_t pair = 0; pair < pairs; ++pair)
                parents.add(reinterpret_cast<const uint8_t*>(&nodes_[i * stride_ + 2 * pair]), 0,
                            &nodes_[i * stride_ + pair]);
        parents.flush();
        if (left_ % 2 == 1)
            for (size_t i = 0; i < count_; ++i) nodes_[i * stride_ + pairs] = nodes_[i * stride_ + left_ - 1];
        left_ -= pairs;
    }

    const Hasher& hasher_;
    const uint8_t* const* buffers_;
    const size_t count_, length_, stride_;
    size_t left_;
    std::vector<Node> nodes_;
};

}  // namespace

const std::vector<const Hasher*>& hashers() {
    static const std::vector<const Hasher*> found = find_hashers();
    return found;
}

void blake3(const Hasher& hasher, const uint8_t* const* buffers, size_t count, size_t length, Digest* digests) {
    Forest(hasher, buffers, count, length).digest(digests);
}

}  // namespace weightpager

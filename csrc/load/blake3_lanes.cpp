// Compresses several nodes of a BLAKE3 tree side by side: lane i of every register belongs to input i. Compiled once per
// instruction set, with WEIGHTPAGER_HASHER its name and WEIGHTPAGER_LANES its registers' 32-bit lanes.
#include "blake3.hpp"
#include "lanes.hpp"
#include "text.hpp"

namespace weightpager {
namespace {

constexpr int kLanes = WEIGHTPAGER_LANES, kWords = 16;

using Word = Lanes<kLanes>::Bits;

constexpr uint32_t kStart[8] = {0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};

// Section 2.2 of the specification: the order in which each round takes the words of a block.
struct Schedule {
    int of[7][kWords];
};

constexpr Schedule schedule() {
    constexpr int kPermutation[kWords] = {2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8};
    Schedule made{};
    for (int i = 0; i < kWords; ++i) made.of[0][i] = i;
    for (int round = 1; round < 7; ++round)
        for (int i = 0; i < kWords; ++i) made.of[round][i] = made.of[round - 1][kPermutation[i]];
    return made;
}

constexpr Schedule kSchedule = schedule();

#if defined(__clang__)
template <int... I>
WEIGHTPAGER_INLINE Word interleaved(Word a, Word b, int half, std::integer_sequence<int, I...>) {
    return half == 0 ? __builtin_shufflevector(a, b, (I / 2 + I % 2 * kLanes)...)
                     : __builtin_shufflevector(a, b, (kLanes / 2 + I / 2 + I % 2 * kLanes)...);
}
#else
template <int... I>
WEIGHTPAGER_INLINE Word interleaved(Word a, Word b, int half, std::integer_sequence<int, I...>) {
    constexpr Word low = {(I / 2 + I % 2 * kLanes)...}, high = {(kLanes / 2 + I / 2 + I % 2 * kLanes)...};
    return half == 0 ? __builtin_shuffle(a, b, low) : __builtin_shuffle(a, b, high);
}
#endif

// Lane i of register j becomes lane j of register i: shuffles perfectly as often as halving takes.
WEIGHTPAGER_INLINE void transpose(Word* rows) {
    constexpr auto lanes = std::make_integer_sequence<int, kLanes>{};
    for (int width = 1; width < kLanes; width *= 2) {
        Word next[kLanes];
        unroll<kLanes / 2>([&](auto i) WEIGHTPAGER_INLINED {
            next[2 * i] = interleaved(rows[i], rows[i + kLanes / 2], 0, lanes);
            next[2 * i + 1] = interleaved(rows[i], rows[i + kLanes / 2], 1, lanes);
        });
        unroll<kLanes>([&](auto i) WEIGHTPAGER_INLINED { rows[i] = next[i]; });
    }
}

template <int Bits>
WEIGHTPAGER_INLINE Word rotated(Word value) {
    return value >> Bits | value << (32 - Bits);
}

WEIGHTPAGER_INLINE void mix(Word& a, Word& b, Word& c, Word& d, Word x, Word y) {
    a = a + b + x;
    d = rotated<16>(d ^ a);
    c = c + d;
    b = rotated<12>(b ^ c);
    a = a + b + y;
    d = rotated<8>(d ^ a);
    c = c + d;
    b = rotated<7>(b ^ c);
}

void compress(const uint8_t* const* inputs, size_t blocks, size_t last, const uint32_t* counters, uint32_t flags,
              uint32_t start, uint32_t end, uint32_t* results) {
    Word chain[8];
    unroll<8>([&](auto i) WEIGHTPAGER_INLINED { chain[i] = Word{} + kStart[i]; });
    const Word counter = load<Word>(counters);
    for (size_t block = 0; block < blocks; ++block) {
        Word words[kWords];
        for (int first = 0; first < kWords; first += kLanes) {
            unroll<kLanes>([&](auto lane) WEIGHTPAGER_INLINED {
                words[first + lane] = load<Word>(inputs[lane] + block * 64 + first * 4);
            });
            transpose(words + first);
        }
        const bool ends = block + 1 == blocks;
        const uint32_t all = flags | (block == 0 ? start : 0) | (ends ? end : 0);
        Word v[16];
        unroll<8>([&](auto i) WEIGHTPAGER_INLINED { v[i] = chain[i]; });
        unroll<4>([&](auto i) WEIGHTPAGER_INLINED { v[8 + i] = Word{} + kStart[i]; });
        v[12] = counter;
        v[13] = Word{};
        v[14] = Word{} + static_cast<uint32_t>(ends ? last : 64);
        v[15] = Word{} + all;
        unroll<7>([&](auto round) WEIGHTPAGER_INLINED {
            constexpr auto& of = kSchedule.of[decltype(round)::value];
            unroll<4>([&](auto i) WEIGHTPAGER_INLINED {
                mix(v[i], v[4 + i], v[8 + i], v[12 + i], words[of[2 * i]], words[of[2 * i + 1]]);
            });
            unroll<4>([&](auto i) WEIGHTPAGER_INLINED {
                mix(v[i], v[4 + (i + 1) % 4], v[8 + (i + 2) % 4], v[12 + (i + 3) % 4], words[of[8 + 2 * i]],
                    words[of[9 + 2 * i]]);
            });
        });
        unroll<8>([&](auto i) WEIGHTPAGER_INLINED { chain[i] = v[i] ^ v[8 + i]; });
    }
    for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 8; ++i) results[8 * lane + i] = chain[i][lane];
}

}  // namespace

extern const Hasher WEIGHTPAGER_HASHER;
const Hasher WEIGHTPAGER_HASHER = {WEIGHTPAGER_TEXT(WEIGHTPAGER_HASHER) + 5, kLanes, compress};  // without "hash_"

}  // namespace weightpager

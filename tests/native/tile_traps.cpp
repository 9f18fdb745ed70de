#include "tile_traps.hpp"

#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstring>

#include "bfloat16.hpp"

namespace {

constexpr int kRows = 16, kBytes = 64;

struct Tile {
    uint8_t row[kRows][kBytes];
};

thread_local Tile tiles[8];

// A tile instruction: VEX in three bytes, the opcode, and ModRM with what follows it.
class Instruction {
   public:
    explicit Instruction(ucontext_t& context)
        : registers_(context.uc_mcontext.gregs), code_(reinterpret_cast<const uint8_t*>(registers_[REG_RIP])) {}

    // Whether it is one, and has been carried out.
    bool run() {
        constexpr uint8_t kVex = 0xc4, kMap = 2;  // 0F 38
        if (code_[0] != kVex || (code_[1] & 0x1f) != kMap) return false;
        const int prefix = code_[2] & 3, opcode = code_[3];
        if (opcode == 0x49) return run_whole(prefix);
        if (opcode == 0x4b && prefix >= 2) return run_move(prefix == 3);
        if (opcode == 0x5c && prefix == 2) return run_dot();
        return false;
    }

   private:
    static constexpr int kHead = 5;  // bytes up to ModRM

    int mode() const { return code_[4] >> 6; }
    int middle() const { return code_[4] >> 3 & 7; }
    int last() const { return code_[4] & 7; }

    // LDTILECFG and TILERELEASE, which change no values, and TILEZERO.
    bool run_whole(int prefix) {
        if (prefix == 3)
            tiles[middle()] = {};
        else if (prefix != 0)
            return false;
        return skip(mode() == 3 ? kHead : kHead + address_bytes());
    }

    // TILELOADD and TILESTORED: their address has a base, and an index that is the stride.
    bool run_move(bool loads) {
        const uint8_t sib = code_[5];
        const int base = (sib & 7) | (code_[1] & 0x20 ? 0 : 8), index = (sib >> 3 & 7) | (code_[1] & 0x40 ? 0 : 8);
        if (last() != 4 || mode() == 3 || ((sib & 7) == 5 && mode() == 0)) return false;
        auto* memory = reinterpret_cast<uint8_t*>(value(base) + displacement());
        const int64_t stride = value(index) << (sib >> 6);
        for (int row = 0; row < kRows; ++row) {
            uint8_t* of_tile = tiles[middle()].row[row];
            if (loads)
                std::memcpy(of_tile, memory + row * stride, kBytes);
            else
                std::memcpy(memory + row * stride, of_tile, kBytes);
        }
        return skip(kHead + address_bytes());
    }

    // TDPBF16PS: sum[m][n] += a[m][2k] * b[k][2n] + a[m][2k + 1] * b[k][2n + 1].
    bool run_dot() {
        float sum[16][16];
        uint16_t a[16][32], b[16][32];
        std::memcpy(sum, &tiles[middle()], sizeof sum);
        std::memcpy(a, &tiles[last()], sizeof a);
        std::memcpy(b, &tiles[~code_[2] >> 3 & 7], sizeof b);
        for (int m = 0; m < 16; ++m)
            for (int k = 0; k < 16; ++k)
                for (int i = 0; i < 32; ++i)
                    sum[m][i / 2] += weightpager::from_bfloat16(a[m][2 * k + i % 2]) * weightpager::from_bfloat16(b[k][i]);
        std::memcpy(&tiles[middle()], sum, sizeof sum);
        return skip(kHead);
    }

    // SIB and displacement.
    int address_bytes() const {
        const bool sib = last() == 4;
        if (mode() == 0) return last() == 5 || (sib && (code_[5] & 7) == 5) ? 4 + sib : sib;
        return (mode() == 1 ? 1 : 4) + sib;
    }

    int64_t displacement() const {
        if (mode() == 0) return 0;
        if (mode() == 1) return static_cast<int8_t>(code_[6]);
        int32_t wide;
        std::memcpy(&wide, code_ + 6, sizeof wide);
        return wide;
    }

    // Of a general register, by its number in instructions.
    int64_t value(int number) const {
        constexpr int kOrder[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
        return registers_[kOrder[number]];
    }

    bool skip(int bytes) {
        registers_[REG_RIP] += bytes;
        return true;
    }

    greg_t* registers_;
    const uint8_t* code_;
};

void carry_out(int signal_number, siginfo_t*, void* context) {
    if (!Instruction(*static_cast<ucontext_t*>(context)).run()) signal(signal_number, SIG_DFL);  // it comes again
}

}  // namespace

void trap_tiles() {
    struct sigaction action = {};
    action.sa_sigaction = carry_out;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, nullptr);
}

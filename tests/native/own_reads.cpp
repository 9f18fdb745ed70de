#include "own_reads.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>

#include "bfloat16.hpp"
#include "divide.hpp"
#include "load/own_reads.hpp"
#include "rows/row_lookup.hpp"
#include "scripted.hpp"

using namespace weightpager;

namespace {

// So many questions long.
class Questions : public Patience {
   public:
    explicit Questions(int most) : most_(most) {}
    void came() override { ++arrivals; }
    bool left() override {
        ++asked;
        if (most_ < 0) throw std::runtime_error("Ctrl-C");
        return asked < most_;
    }
    int asked = 0, arrivals = 0;

   private:
    const int most_;
};

PagesToRead wanted(const std::vector<int64_t>& pages, int file = 0) {
    const Pages all(pages, file);
    return {all.pages, all.offsets, all.files, all.expected};
}

struct Reader {
    std::function<int64_t(Read&)> result;
    std::vector<std::unique_ptr<Script>> scripts;  // of each lane
    OwnReads reads;
    explicit Reader(size_t depth = 4, size_t lanes = 2)
        : reads([this] { return open(); }, *hashers()[0], depth, lanes) {}

    std::unique_ptr<Device> open() {
        scripts.push_back(std::make_unique<Script>());
        scripts.back()->result = [this](Read& read) { return result(read); };
        return std::make_unique<Scripted>(*scripts.back());
    }

    Outcome read(const PagesToRead& some, int patience = 1000) {
        Questions questions(patience);
        return reads.read(some, kPage, 2, questions, [&](const uint8_t* landed) {
            for (size_t i = 0; i < some.pages.size(); ++i)
                EXPECT(std::memcmp(landed + i * kPage, content(some.pages[i]).data(), kPage) == 0);
        });
    }
};

void pages_come_in_order_whatever_storage_gives() {
    Reader reader;
    std::mt19937 random(5);
    reader.result = [&](Read& read) -> int64_t {
        if (random() % 4 == 0) return random() % 2 ? -EINTR : -EAGAIN;
        return 1 + static_cast<int64_t>(random() % (read.bytes() - read.done));
    };
    const Outcome outcome = reader.read(wanted({1, 2, 3, 7, 20, 21, 40, 41, 42, 43, 50}));
    EXPECT(outcome.failure == Failure::none && outcome.bytes == 11 * kPage);
    EXPECT(reader.scripts[0]->most <= 4);
    EXPECT(reader.reads.close(std::chrono::seconds(1)));
    EXPECT(reader.read(wanted({1})).failure == Failure::closed);
}

void the_first_failure_counts_and_nothing_begins_after_it() {
    Reader reader(1);
    reader.result = [](Read& read) -> int64_t {
        if (read.pages[0] == 10) return -EIO;
        return static_cast<int64_t>(read.bytes() - read.done);
    };
    const Outcome outcome = reader.read(wanted({1, 10, 20, 30}));
    EXPECT(outcome.failure == Failure::storage && outcome.error == EIO && outcome.page == 10 && outcome.bytes == 0);
    EXPECT((reader.scripts[0]->begun == std::vector<int64_t>{1, 10}));
    PagesToRead damaged = wanted({1, 2, 3});
    damaged.expected[32] ^= 1;
    EXPECT(reader.read(damaged).failure == Failure::corrupt && reader.read(damaged).page == 2);
    reader.result = [](Read& read) -> int64_t { return read.done == 0 ? 100 : 0; };
    EXPECT(reader.read(wanted({5})).failure == Failure::end_of_file);
}

void what_hangs_keeps_its_lane_and_nobody_else() {
    Reader reader(4, 2);
    reader.result = [](Read& read) { return read.pages[0] == 3 ? kHangs : static_cast<int64_t>(read.bytes()); };
    EXPECT(reader.read(wanted({1, 3, 5}), 2).failure == Failure::hangs);
    EXPECT(reader.read(wanted({1, 5})).failure == Failure::none);
    bool thrown = false;
    try {
        reader.read(wanted({3}), -1);
    } catch (const std::runtime_error&) {
        thrown = true;
    }
    EXPECT(thrown);
    EXPECT(reader.read(wanted({1}), 2).failure == Failure::hangs);  // there is no lane left
    EXPECT(!reader.reads.close(std::chrono::milliseconds(1)));
    for (const auto& script : reader.scripts) script->resume();
    EXPECT(reader.reads.close(std::chrono::seconds(10)));
}

void reads_go_on_while_their_thread_does_something_else() {
    Reader reader(2, 2);
    std::mt19937 random(7);
    reader.result = [&](Read& read) -> int64_t { return 1 + static_cast<int64_t>(random() % (read.bytes() - read.done)); };
    const PagesToRead some = wanted({1, 2, 3, 9, 20, 30, 31}), others = wanted({4, 5});
    for (int round = 0; round < 20; ++round) {
        const auto first = reader.reads.begin(some, kPage, 2), second = reader.reads.begin(others, kPage, 2);
        EXPECT(first && second && first->reads() == 5 && second->reads() == 1);
        EXPECT(!reader.reads.begin(others, kPage, 2));  // both lanes are taken
        Questions patient(1000);
        EXPECT(second->wait(patient).failure == Failure::none && first->wait(patient).bytes == 7 * kPage);
        for (size_t i = 0; i < 7; ++i)
            EXPECT(std::memcmp(first->landed() + i * kPage, content(some.pages[i]).data(), kPage) == 0);
    }
    reader.reads.begin(some, kPage, 2).reset();  // nobody waits for what has begun
    EXPECT(reader.read(some).failure == Failure::none);
    reader.result = [](Read&) { return kHangs; };
    {
        const auto hangs = reader.reads.begin(some, kPage, 2);
        Questions few(2);
        EXPECT(hangs->wait(few).failure == Failure::hangs);
    }
    EXPECT(!reader.reads.close(std::chrono::milliseconds(1)));
    EXPECT(!reader.reads.begin(some, kPage, 2));
    for (const auto& script : reader.scripts) script->resume();
    EXPECT(reader.reads.close(std::chrono::seconds(10)));
}

bool out_of_memory = false;

void compress(const uint8_t* const* inputs, size_t blocks, size_t last, const uint32_t* counters, uint32_t flags,
              uint32_t start, uint32_t end, uint32_t* results) {
    if (out_of_memory) throw std::bad_alloc();
    hashers()[0]->compress(inputs, blocks, last, counters, flags, start, end, results);
}

void a_check_that_throws_leaves_its_lane_to_others() {
    const Hasher hasher{"runs out", hashers()[0]->lanes, &compress};
    Script script;
    OwnReads reads([&] { return std::make_unique<Scripted>(script); }, hasher, 4, 1);
    const auto read = [&] {
        Questions questions(100);
        return reads.read(wanted({1, 3, 5}), kPage, 2, questions, [](const uint8_t*) {}).failure;
    };
    out_of_memory = true;
    bool thrown = false;
    try {
        read();
    } catch (const std::bad_alloc&) {
        thrown = true;
    }
    EXPECT(thrown);
    out_of_memory = false;
    EXPECT(read() == Failure::none);
    EXPECT(reads.close(std::chrono::seconds(10)));
}

// A table in a file, its rows in places of their own, and threads that look it up while its memory is small.
void a_table_gives_its_rows_to_many_threads() {
    constexpr int64_t kRows = 300, kColumns = 61, kRowBytes = kColumns + 2;
    std::vector<uint8_t> stream(kRows * kRowBytes);
    std::vector<uint16_t> places(kRows);
    for (int64_t row = 0; row < kRows; ++row) {
        places[static_cast<size_t>(row)] = static_cast<uint16_t>(row * 7 % kRows);
        uint8_t* at = &stream[static_cast<size_t>(places[static_cast<size_t>(row)] * kRowBytes)];
        for (int64_t c = 0; c < kColumns; ++c) at[c] = byte_of(row, static_cast<size_t>(c));
        const uint16_t scale = to_bfloat16(static_cast<float>(1 + row % 5));
        std::memcpy(at + kColumns, &scale, sizeof scale);
    }
    stream.resize(divide_up(stream.size(), kPage) * kPage);
    char path[] = "/tmp/row_tests.XXXXXX";
    const int file = mkstemp(path);
    unlink(path);
    if (pwrite(file, stream.data(), stream.size(), 0) < 0) std::abort();
    std::vector<uint8_t> ids;
    for (size_t at = 0; at < stream.size(); at += kPage) {
        const Digest one = digest({stream.begin() + static_cast<std::ptrdiff_t>(at),
                                   stream.begin() + static_cast<std::ptrdiff_t>(at + kPage)});
        ids.insert(ids.end(), one.begin(), one.end());
    }
    for (const bool ring : {true, false}) {
        std::vector<uint8_t> stored(kRows * kRowBytes), stay(kRows);
        std::vector<int32_t> slot_of(kRows, -1), row_in(kRows);
        std::vector<uint32_t> last_use(kRows);
        std::vector<int64_t> state = {20, 0, INT64_C(0xffffffff) - 2000}, tally(5);
        const RowMemory memory{{places.data(), false}, kRows, kRowBytes, kRows, stored.data(), slot_of.data(), row_in.data(),
                               last_use.data(), stay.data(), state.data()};
        const auto reads = std::make_shared<OwnReads>([=] { return open_device(ring, 4, true); }, *hashers()[0], 4, 2);
        const RowFiles files{9, kPage, ids.data(), {{0, file, 0}, {1, file, kPage}}, 2};
        RowLookup table(memory, kPage, 3 * kPage, files.reading(reads),
                        {&tally[0], &tally[1], &tally[2], &tally[3], &tally[4]});
        std::vector<std::thread> threads;
        for (unsigned seed = 0; seed < 4; ++seed)
            threads.emplace_back([&, seed] {
                std::mt19937 random(seed);
                std::vector<float> out(40 * kColumns);
                for (int round = 0; round < 60; ++round) {
                    std::vector<int64_t> some(random() % 40);
                    for (int64_t& id : some) id = static_cast<int64_t>(random() % kRows * (random() % 100) / 100);
                    Questions questions(1000);
                    const Outcome outcome =
                        table.look_up(some.data(), static_cast<int64_t>(some.size()), {out.data(), false}, questions);
                    EXPECT(outcome.failure == Failure::none);
                    for (size_t i = 0; i < some.size(); ++i)
                        for (size_t c = 0; c < kColumns; ++c)
                            EXPECT(out[i * kColumns + c] == static_cast<float>(static_cast<int8_t>(byte_of(some[i], c))) *
                                                                static_cast<float>(1 + some[i] % 5));
                    const std::lock_guard<std::mutex> held(table.lock());
                    state[0] = std::max<int64_t>(state[1], static_cast<int64_t>(random() % 60));
                }
            });
        for (std::thread& thread : threads) thread.join();
        EXPECT(tally[0] > tally[1] && tally[1] > 0 && tally[2] > 0 && tally[3] > 0 && tally[4] > 0);
        for (int64_t slot = 0; slot < state[1]; ++slot) EXPECT(slot_of[static_cast<size_t>(row_in[slot])] == slot);
        std::cout << "looked up by " << reads->device() << std::endl;
        EXPECT(reads->close(std::chrono::seconds(10)));
    }
    close(file);
}

void a_paced_device_tells_of_reads_when_they_have_arrived() {
    using Clock = Pace::Clock;
    const auto pace = std::make_shared<Pace>(1e6);  // a page in 4.1 ms
    Script script;
    const std::unique_ptr<Device> device = paced(std::make_unique<Scripted>(script), pace);
    Pages pages({3, 5, 9});
    std::vector<Read> reads = pages.reads();
    std::vector<Read*> ended;
    const Clock::time_point start = Clock::now();
    for (Read& read : reads) device->begin(read);
    device->wait(ended, 0);
    // Although the device has read them all; on a busy machine the first one may have had its time.
    EXPECT(ended.empty() || Clock::now() - start >= std::chrono::microseconds(kPage));
    for (size_t i = 0; i < reads.size(); ++i) {
        while (ended.size() <= i) device->wait(ended, -1);
        EXPECT(ended[i] == &reads[i]);
        EXPECT(Clock::now() - start >= std::chrono::microseconds((i + 1) * kPage));
    }
    std::thread other([&] { device->wake(); });
    device->wait(ended, -1);
    other.join();
    EXPECT(ended.size() == 3 && pages.right());
    const Clock::time_point later = Clock::now();
    EXPECT(pace->arrival(1000) >= later + std::chrono::milliseconds(1));  // the time without reads earned nothing
}

}  // namespace

void test_own_reads() {
    a_paced_device_tells_of_reads_when_they_have_arrived();
    pages_come_in_order_whatever_storage_gives();
    the_first_failure_counts_and_nothing_begins_after_it();
    what_hangs_keeps_its_lane_and_nobody_else();
    a_check_that_throws_leaves_its_lane_to_others();
    reads_go_on_while_their_thread_does_something_else();
    a_table_gives_its_rows_to_many_threads();
}

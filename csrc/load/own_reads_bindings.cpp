// Memory crosses the border as addresses; weightpager/runtime/paging/pager.py has checked what they point to.
#include "own_reads_bindings.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <cstring>

#include "../address.hpp"
#include "bindings.hpp"

namespace nb = nanobind;

namespace weightpager {
namespace {

template <class T>
std::vector<T> copied(uintptr_t address, size_t count) {
    const T* const first = at<const T>(address);
    return {first, first + count};
}

// Pages that are read into memory beside the arena, to be copied into slots.
class LandedPages {
   public:
    LandedPages(std::shared_ptr<OwnReads> reads, size_t page_bytes) : reads_(std::move(reads)), page_bytes_(page_bytes) {}

    // False if no lane is free.
    bool begin(const PagesToRead& wanted, size_t most) {
        flight_ = reads_->begin(wanted, page_bytes_, most);
        return flight_ != nullptr;
    }

    size_t reads() const { return flight_->reads(); }

    nb::tuple wait(double read_timeout, nb::handle ended) {
        Outcome outcome;
        {
            nb::gil_scoped_release release;
            Waiting waiting(read_timeout, ended);
            outcome = flight_->wait(waiting);
        }
        return told(outcome);
    }

    // Copies the pages into slots of this memory, in the order in which they were asked for.
    void place(size_t count, uintptr_t slots, uintptr_t memory) const {
        const int64_t* const slot = at<const int64_t>(slots);
        uint8_t* const arena = at<uint8_t>(memory);
        for (size_t i = 0; i < count; ++i)
            std::memcpy(arena + slot[i] * static_cast<int64_t>(page_bytes_), flight_->landed() + i * page_bytes_, page_bytes_);
    }

    // Gives the lane back; what hangs keeps it until it ends. Nothing else may be called after that.
    void drop() {
        nb::gil_scoped_release release;
        flight_.reset();
    }

   private:
    const std::shared_ptr<OwnReads> reads_;
    const size_t page_bytes_;
    std::unique_ptr<OwnReads::Flight> flight_;
};

// None if no lane is free, or they have been closed.
std::unique_ptr<LandedPages> begin(const OwnReadsBinding& reads, size_t most, size_t count, uintptr_t pages,
                                   uintptr_t files, uintptr_t offsets, uintptr_t expected, size_t page_bytes) {
    nb::gil_scoped_release release;
    auto landed = std::make_unique<LandedPages>(reads.shared(), page_bytes);
    const PagesToRead wanted{copied<int64_t>(pages, count), copied<int64_t>(offsets, count), copied<int32_t>(files, count),
                             copied<uint8_t>(expected, count * sizeof(Digest))};
    return landed->begin(wanted, most) ? std::move(landed) : nullptr;
}

}  // namespace

bool Waiting::left() {
    const nb::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
    const auto ended = nb::cast<int64_t>(ended_());
    if (ended != seen_ && seen_ >= 0) came();
    seen_ = ended;
    return Clock::now() - since_ < seconds_;
}

OwnReadsBinding::OwnReadsBinding(unsigned reads, bool ring)
    : reads_(std::make_shared<OwnReads>([=] { return open_device(ring, reads, true); }, *hashers()[0], reads)) {}

bool OwnReadsBinding::close(double seconds) {
    nb::gil_scoped_release release;
    return reads_->close(std::chrono::microseconds(static_cast<int64_t>(1e6 * seconds)));
}

nb::tuple told(const Outcome& outcome) {
    return nb::make_tuple(static_cast<int>(outcome.failure), outcome.error, outcome.page, outcome.bytes);
}

void bind_own_reads(nb::module_& module) {
    nb::class_<LandedPages>(module, "LandedReads")
        .def_prop_ro("reads", &LandedPages::reads)
        .def("wait", &LandedPages::wait)
        .def("place", &LandedPages::place)
        .def("drop", &LandedPages::drop);
    nb::class_<OwnReadsBinding>(module, "OwnReads")
        .def(nb::init<unsigned, bool>(), nb::kw_only(), nb::arg("reads"), nb::arg("ring"))
        .def("begin", &begin)
        .def("close", &OwnReadsBinding::close)
        .def_prop_ro("device", &OwnReadsBinding::device);
}

}  // namespace weightpager

// Memory crosses the border as addresses; weightpager/kernels/rows.py and weightpager/runtime/rows have checked what they
// point to.
#include "bindings.hpp"

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <string>
#include <tuple>

#include "row_table.hpp"
#include "widen.hpp"

namespace nb = nanobind;

namespace weightpager {
namespace {

using Clock = std::chrono::steady_clock;

template <class T>
T* at(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

void widen(uintptr_t base, uintptr_t offsets, uintptr_t rows, int64_t count, int64_t columns, uintptr_t out,
           bool bfloat16) {
    nb::gil_scoped_release release;
    widen_rows(at<const uint8_t>(base), at<const int64_t>(offsets), at<const int64_t>(rows), count, columns,
               at<void>(out), bfloat16);
}

// For so long as other reads end, too, and until Ctrl-C.
class Waiting : public Patience {
   public:
    Waiting(double seconds, nb::handle ended) : seconds_(seconds), ended_(ended) {}

    void came() override { since_ = Clock::now(); }

    bool left() override {
        const nb::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
        const auto ended = nb::cast<int64_t>(ended_());
        if (ended != seen_ && seen_ >= 0) came();
        seen_ = ended;
        return Clock::now() - since_ < seconds_;
    }

   private:
    const std::chrono::duration<double> seconds_;
    const nb::handle ended_;
    int64_t seen_ = -1;
    Clock::time_point since_ = Clock::now();
};

class Reads {
   public:
    Reads(unsigned reads, bool ring)
        : reads_(std::make_shared<OwnReads>([=] { return open_device(ring, reads, true); }, *hashers()[0], reads)) {}

    bool close(double seconds) {
        nb::gil_scoped_release release;
        return reads_->close(std::chrono::microseconds(static_cast<int64_t>(1e6 * seconds)));
    }

    std::string device() const { return reads_->device(); }

    const std::shared_ptr<OwnReads>& shared() const { return reads_; }

   private:
    std::shared_ptr<OwnReads> reads_;
};

class Table {
   public:
    Table(const Reads& reads, uintptr_t places, int wide, int64_t rows, int64_t row_bytes, int64_t capacity,
          uintptr_t stored, uintptr_t slot_of, uintptr_t row_in, uintptr_t last_use, uintptr_t stay, uintptr_t state,
          uintptr_t tally, uintptr_t ids, int64_t first_page, size_t page_bytes, size_t most, size_t bytes_at_once,
          const std::vector<std::tuple<int64_t, int, int64_t>>& extents)
        : table_({{at<const void>(places), wide != 0}, rows, row_bytes, capacity, at<uint8_t>(stored), at<int32_t>(slot_of),
                  at<int32_t>(row_in), at<uint32_t>(last_use), at<uint8_t>(stay), at<int64_t>(state)},
                 {first_page, page_bytes, at<const uint8_t>(ids), extents_of(extents), most, bytes_at_once},
                 reads.shared(),
                 {at<int64_t>(tally), at<int64_t>(tally) + 1, at<int64_t>(tally) + 2, at<int64_t>(tally) + 3}) {}

    // How it failed, the storage's error, the page, and bytes that have been read; none where an id isn't in the table.
    // `ended` says how often reads of others have ended.
    nb::object look_up(uintptr_t ids, int64_t count, uintptr_t out, bool bfloat16, double patience, nb::handle ended) {
        if (!table_.has_all(at<const int64_t>(ids), count)) return nb::none();
        Outcome outcome;
        {
            nb::gil_scoped_release release;
            Waiting waiting(patience, ended);
            outcome = table_.look_up(at<const int64_t>(ids), count, {at<void>(out), bfloat16}, waiting);
        }
        return nb::make_tuple(static_cast<int>(outcome.failure), outcome.error, outcome.page, outcome.bytes);
    }

    void lock() {
        nb::gil_scoped_release release;
        table_.lock().lock();
    }

    void unlock() { table_.lock().unlock(); }

   private:
    static std::vector<Extent> extents_of(const std::vector<std::tuple<int64_t, int, int64_t>>& given) {
        std::vector<Extent> found;
        for (const auto& [first, file, offset] : given) found.push_back({first, file, offset});
        return found;
    }

    RowTable table_;
};

}  // namespace

void bind_rows(nb::module_& module) {
    module.def("widen_rows", &widen);
    nb::class_<Reads>(module, "OwnReads")
        .def(nb::init<unsigned, bool>(), nb::kw_only(), nb::arg("reads"), nb::arg("ring"))
        .def("close", &Reads::close)
        .def_prop_ro("device", &Reads::device);
    nb::class_<Table>(module, "RowTable")
        .def(nb::init<const Reads&, uintptr_t, int, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t,
                      uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, size_t, size_t, size_t,
                      const std::vector<std::tuple<int64_t, int, int64_t>>&>(),
             nb::arg("reads"), nb::kw_only(), nb::arg("places"), nb::arg("wide"), nb::arg("rows"), nb::arg("row_bytes"),
             nb::arg("capacity"), nb::arg("stored"), nb::arg("slot_of"), nb::arg("row_in"), nb::arg("last_use"),
             nb::arg("stay"), nb::arg("state"), nb::arg("tally"), nb::arg("ids"), nb::arg("first_page"),
             nb::arg("page_bytes"), nb::arg("most"), nb::arg("bytes_at_once"), nb::arg("extents"))
        .def("look_up", &Table::look_up)
        .def("lock", &Table::lock)
        .def("unlock", &Table::unlock);
}

}  // namespace weightpager

// Memory crosses the border as addresses; weightpager/kernels/rows.py and weightpager/runtime/rows have checked what they
// point to.
#include "bindings.hpp"

#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "../address.hpp"
#include "../load/own_reads_bindings.hpp"
#include "row_lookup.hpp"
#include "widen.hpp"

namespace nb = nanobind;

namespace weightpager {
namespace {

void widen(uintptr_t base, uintptr_t offsets, uintptr_t rows, int64_t count, int64_t columns, uintptr_t out,
           bool bfloat16) {
    nb::gil_scoped_release release;
    widen_rows(at<const uint8_t>(base), at<const int64_t>(offsets), at<const int64_t>(rows), count, columns,
               at<void>(out), bfloat16);
}

class RowLookupBinding {
   public:
    RowLookupBinding(const OwnReadsBinding& reads, uintptr_t places, int wide, int64_t rows, int64_t row_bytes,
                     int64_t capacity, uintptr_t stored, uintptr_t slot_of, uintptr_t row_in, uintptr_t last_use,
                     uintptr_t stay, uintptr_t state, uintptr_t tally, uintptr_t ids, int64_t first_page,
                     size_t page_bytes, size_t most, size_t bytes_at_once,
                     const std::vector<std::tuple<int64_t, int, int64_t>>& extents)
        : rows_({{at<const void>(places), wide != 0}, rows, row_bytes, capacity, at<uint8_t>(stored), at<int32_t>(slot_of),
                 at<int32_t>(row_in), at<uint32_t>(last_use), at<uint8_t>(stay), at<int64_t>(state)},
                {first_page, page_bytes, at<const uint8_t>(ids), extents_of(extents), most, bytes_at_once},
                reads.shared(),
                {at<int64_t>(tally), at<int64_t>(tally) + 1, at<int64_t>(tally) + 2, at<int64_t>(tally) + 3,
                 at<int64_t>(tally) + 4}) {}

    // How it failed, the storage's error, the page, and bytes that have been read; none where an id isn't in the table.
    // `ended` says how often reads of others have ended.
    nb::object look_up(uintptr_t ids, int64_t count, uintptr_t out, bool bfloat16, double read_timeout,
                       nb::handle ended) {
        if (!rows_.has_all(at<const int64_t>(ids), count)) return nb::none();
        Outcome outcome;
        {
            nb::gil_scoped_release release;
            Waiting waiting(read_timeout, ended);
            outcome = rows_.look_up(at<const int64_t>(ids), count, {at<void>(out), bfloat16}, waiting);
        }
        return told(outcome);
    }

    // A context in Python, which keeps others from the memory and the tally. No function of Python's own begins between
    // the lock and what it guards, so that Ctrl-C can't come there.
    void lock() {
        nb::gil_scoped_release release;
        rows_.lock().lock();
    }

    void unlock() { rows_.lock().unlock(); }

   private:
    static std::vector<Extent> extents_of(const std::vector<std::tuple<int64_t, int, int64_t>>& given) {
        std::vector<Extent> found;
        for (const auto& [first, file, offset] : given) found.push_back({first, file, offset});
        return found;
    }

    RowLookup rows_;
};

}  // namespace

void bind_rows(nb::module_& module) {
    module.def("widen_rows", &widen);
    nb::class_<RowLookupBinding>(module, "RowLookup")
        .def(nb::init<const OwnReadsBinding&, uintptr_t, int, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t,
                      uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, size_t, size_t, size_t,
                      const std::vector<std::tuple<int64_t, int, int64_t>>&>(),
             nb::arg("reads"), nb::kw_only(), nb::arg("places"), nb::arg("wide"), nb::arg("rows"), nb::arg("row_bytes"),
             nb::arg("capacity"), nb::arg("stored"), nb::arg("slot_of"), nb::arg("row_in"), nb::arg("last_use"),
             nb::arg("stay"), nb::arg("state"), nb::arg("tally"), nb::arg("ids"), nb::arg("first_page"),
             nb::arg("page_bytes"), nb::arg("most"), nb::arg("bytes_at_once"), nb::arg("extents"))
        .def("look_up", &RowLookupBinding::look_up)
        .def("__enter__", &RowLookupBinding::lock)
        .def("__exit__", [](RowLookupBinding& rows, const nb::args&) { rows.unlock(); });
}

}  // namespace weightpager

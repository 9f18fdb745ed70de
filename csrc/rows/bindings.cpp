// Memory crosses the border as addresses; weightpager/kernels/rows.py and weightpager/runtime/rows.py have checked what they
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

const uint8_t* address_of(const nb::object& array) {
    return at<const uint8_t>(nb::cast<uintptr_t>(array.attr("ctypes").attr("data")));
}

// Reads by a function of Python's: it gets numbers of pages, int64, and returns an array of numpy's of what has landed. It
// counts what it reads itself.
ReadPages by_python(nb::object read) {
    return [read = std::move(read)](const std::vector<int64_t>& pages, Patience&, const OwnReads::Use& use) {
        const nb::gil_scoped_acquire acquire;
        const nb::object landed =
            read(nb::bytes(reinterpret_cast<const char*>(pages.data()), pages.size() * sizeof(int64_t)));
        const uint8_t* const address = address_of(landed);
        {
            const nb::gil_scoped_release release;
            use(address);
        }
        return Outcome();
    };
}

class RowFilesBinding {
   public:
    // `ids` is an array of numpy's, uint8 [pages, 32].
    RowFilesBinding(const OwnReadsBinding& reads, nb::object ids, int64_t first_page, size_t page_bytes, size_t most,
                    const std::vector<std::tuple<int64_t, int, int64_t>>& extents)
        : reads_(reads.shared()), ids_(std::move(ids)), files_{first_page, page_bytes, address_of(ids_), {}, most} {
        for (const auto& [first, file, offset] : extents) files_.extents.push_back({first, file, offset});
    }

    ReadPages reading() const {
        return [read = files_.reading(reads_), ids = ids_](const std::vector<int64_t>& pages, Patience& patience,
                                                           const OwnReads::Use& use) { return read(pages, patience, use); };
    }

   private:
    const std::shared_ptr<OwnReads> reads_;
    const nb::object ids_;
    RowFiles files_;
};

class RowLookupBinding {
   public:
    // `read` is a `RowFiles`, or a function of Python's.
    RowLookupBinding(uintptr_t places, int wide, int64_t rows, int64_t row_bytes, int64_t capacity, uintptr_t stored,
                     uintptr_t slot_of, uintptr_t row_in, uintptr_t last_use, uintptr_t stay, uintptr_t state,
                     uintptr_t tally, size_t page_bytes, size_t bytes_at_once, nb::object read)
        : rows_({{at<const void>(places), wide != 0}, rows, row_bytes, capacity, at<uint8_t>(stored), at<int32_t>(slot_of),
                 at<int32_t>(row_in), at<uint32_t>(last_use), at<uint8_t>(stay), at<int64_t>(state)},
                page_bytes, bytes_at_once,
                nb::isinstance<RowFilesBinding>(read) ? nb::cast<const RowFilesBinding&>(read).reading() : by_python(read),
                {at<int64_t>(tally), at<int64_t>(tally) + 1, at<int64_t>(tally) + 2, at<int64_t>(tally) + 3,
                 at<int64_t>(tally) + 4}) {}

    // How it failed, the storage's error, the page, and bytes that have been read; none where an id isn't in the table.
    // `ended` says how often reads of others have ended.
    nb::object look_up(uintptr_t ids, int64_t count, uintptr_t out, bool bfloat16, double read_timeout,
                       nb::handle ended) {
        if (!rows_.has_all(at<const int64_t>(ids), count)) return nb::none();
        return waited(read_timeout, ended, [&](Patience& patience) {
            return rows_.look_up(at<const int64_t>(ids), count, {at<void>(out), bfloat16}, patience);
        });
    }

    nb::tuple fill(double read_timeout, nb::handle ended) {
        return waited(read_timeout, ended, [&](Patience& patience) { return rows_.fill(patience); });
    }

    nb::tuple read_all(uintptr_t out, double read_timeout, nb::handle ended) {
        return waited(read_timeout, ended,
                      [&](Patience& patience) { return rows_.read_all({at<void>(out), false}, patience); });
    }

    void resize(int64_t slots) {
        nb::gil_scoped_release release;
        rows_.resize(slots);
    }

    // A context in Python, which keeps others from the memory and the tally. No function of Python's own begins between
    // the lock and what it guards, so that Ctrl-C can't come there.
    void lock() {
        nb::gil_scoped_release release;
        rows_.lock().lock();
    }

    void unlock() { rows_.lock().unlock(); }

   private:
    template <class Work>
    static nb::tuple waited(double read_timeout, nb::handle ended, const Work& work) {
        Outcome outcome;
        {
            nb::gil_scoped_release release;
            Waiting waiting(read_timeout, ended);
            outcome = work(waiting);
        }
        return told(outcome);
    }

    RowLookup rows_;
};

}  // namespace

void bind_rows(nb::module_& module) {
    module.def("widen_rows", &widen);
    nb::class_<RowFilesBinding>(module, "RowFiles")
        .def(nb::init<const OwnReadsBinding&, nb::object, int64_t, size_t, size_t,
                      const std::vector<std::tuple<int64_t, int, int64_t>>&>(),
             nb::arg("reads"), nb::kw_only(), nb::arg("ids"), nb::arg("first_page"), nb::arg("page_bytes"),
             nb::arg("most"), nb::arg("extents"));
    nb::class_<RowLookupBinding>(module, "RowLookup")
        .def(nb::init<uintptr_t, int, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t,
                      uintptr_t, uintptr_t, size_t, size_t, nb::object>(),
             nb::kw_only(), nb::arg("places"), nb::arg("wide"), nb::arg("rows"), nb::arg("row_bytes"), nb::arg("capacity"),
             nb::arg("stored"), nb::arg("slot_of"), nb::arg("row_in"), nb::arg("last_use"), nb::arg("stay"),
             nb::arg("state"), nb::arg("tally"), nb::arg("page_bytes"), nb::arg("bytes_at_once"), nb::arg("read"))
        .def("look_up", &RowLookupBinding::look_up)
        .def("fill", &RowLookupBinding::fill)
        .def("read_all", &RowLookupBinding::read_all)
        .def("resize", &RowLookupBinding::resize)
        .def("__enter__", &RowLookupBinding::lock)
        .def("__exit__", [](RowLookupBinding& rows, const nb::args&) { rows.unlock(); });
}

}  // namespace weightpager

// The Python module. Memory crosses the border as addresses, so that torch's headers are needed neither to build
// nor to run; the modules of weightpager/kernels have checked what they point to.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <exception>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "address.hpp"
#include "block_rows.hpp"
#include "block_tables.hpp"
#include "load/bindings.hpp"
#include "read_memory.hpp"
#include "linear/paged_linear.hpp"
#include "parallel.hpp"
#include "program/bindings.hpp"
#include "rows/bindings.hpp"
#include "training/bindings.hpp"
#include "linear/weight.hpp"

namespace nb = nanobind;
using namespace weightpager;

namespace {

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Kernel* kernel : kernels()) names.emplace_back(kernel->name);
    return names;
}

// The dtypes of pages that kernels read.
std::vector<std::string> dtypes() {
    std::vector<std::string> names;
    for (const DtypeFacts& each : kDtypes) names.emplace_back(each.name);
    return names;
}

// Which kernel serves float32 where this one is chosen.
std::string exact(size_t isa) {
    Problem problem{};
    problem.dtype = problem.weight_dtype = Dtype::float32;
    return suitable(*kernels().at(isa), problem).name;
}

// Which block lies in each place of a bundle's pages. The memory belongs to the caller's arrays.
class TableExpander {
   public:
    TableExpander(uintptr_t blocks, uintptr_t layers, uintptr_t page_numbers, uintptr_t starts, int64_t pages,
                  int64_t places, bool wide, int64_t total, const std::vector<std::tuple<int64_t, int64_t, int64_t>>& grids)
        : placement_{at<const void>(blocks), wide, at<const int32_t>(layers), at<const int64_t>(page_numbers),
                     pages, places, at<const int64_t>(starts), total} {
        for (const auto& [first, rows, cols] : grids) grids_.push_back({first, rows, cols});
    }

    void expand(uintptr_t used, uintptr_t crow, uintptr_t columns, uintptr_t locations) const {
        nb::gil_scoped_release release;
        expand_tables(placement_, grids_, at<const uint8_t>(used), at<int32_t>(crow), at<int32_t>(columns),
                      at<int32_t>(locations));
    }

   private:
    Placement placement_;
    std::vector<Grid> grids_;
};

// The base of what is undone at the end of a `with` block, as runtime/bracket.py says. Python handles no signal from
// the block's end until `leave` begins, and what it raises there is raised once `leave` has ended.
struct Ending {};

nb::object end_block(nb::handle self, nb::handle kind, nb::handle error, nb::handle trace) {
    std::exception_ptr raised;
    for (int more = 1000;; --more) {  // and not for ever, should a full stack keep it from beginning
        try {
            nb::object result = self.attr("leave")(kind, error, trace);
            if (raised) std::rethrow_exception(raised);
            return result;
        } catch (nb::python_error&) {
            if (more == 0 || !nb::cast<bool>(self.attr("entered"))) throw;
            raised = std::current_exception();
        }
    }
}

void read_memory(uintptr_t address, int64_t bytes, int threads) {
    nb::gil_scoped_release release;
    read_all(at<const uint8_t>(address), bytes, std::max(1, threads));
}

void look_up(uintptr_t pages, int64_t blocks, int64_t block_rows, int64_t block_cols, const std::string& dtype,
             int64_t columns, uintptr_t ids, int64_t count, uintptr_t out, bool bfloat16) {
    const BlockRows table{at<const uint8_t>(pages), blocks, block_rows, block_cols, dtype_named(dtype), columns};
    nb::gil_scoped_release release;
    look_up_rows(table, at<const int64_t>(ids), count, at<void>(out), bfloat16);
}

}  // namespace

NB_MODULE(_native, m) {
    m.def("isas", &isas);
    m.def("dtypes", &dtypes);
    m.def("exact", &exact);
    m.def("threading", [] { return std::string(have_openmp() ? "gomp" : "own"); });
    m.def("read_memory", &read_memory);
    m.def("look_up_rows", &look_up);
    nb::class_<Ending>(m, "Ending")
        .def(nb::init<>())
        .def("__exit__", &end_block, nb::arg().none(), nb::arg().none(), nb::arg().none());
    nb::class_<TableExpander>(m, "TableExpander")
        .def(nb::init<uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, bool, int64_t,
                      const std::vector<std::tuple<int64_t, int64_t, int64_t>>&>())
        .def("expand", &TableExpander::expand);
    nb::class_<Weight>(m, "Weight")
        .def(nb::init<uintptr_t, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t,
                      int64_t, int64_t, int64_t, const std::string&>(),
             nb::kw_only(), nb::arg("arena"), nb::arg("page_table"), nb::arg("crow_indices"), nb::arg("col_indices"),
             nb::arg("locations"), nb::arg("slots"), nb::arg("page_bytes"), nb::arg("blocks_per_page"),
             nb::arg("out_features"), nb::arg("in_features"), nb::arg("block_rows"), nb::arg("block_cols"),
             nb::arg("dtype"))
        .def("linear", &Weight::linear)
        .def("gated", &Weight::gated);
    bind_loads(m);
    bind_own_reads(m);
    bind_rows(m);
    bind_programs(m);
    bind_training(m);
    // A process may end with an engine open, and what a read that hangs may still write to is kept until then.
    nb::set_leak_warnings(false);
}

// Memory crosses the border as addresses; weightpager/backends/native has checked what they point to.
#include "bindings.hpp"

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "address.hpp"
#include "program.hpp"
#include "linear/weight.hpp"

namespace nb = nanobind;

namespace weightpager {
namespace {

Type type_named(const std::string& name) {
    for (Type type : {Type::float32, Type::int64, Type::boolean, Type::bfloat16})
        if (name == text_of(type)) return type;
    throw std::invalid_argument("no dtype '" + name + "'");
}

Attribute attribute_of(nb::handle value) {
    if (nb::isinstance<nb::bool_>(value)) return nb::cast<bool>(value);
    if (nb::isinstance<nb::int_>(value)) return nb::cast<int64_t>(value);
    if (nb::isinstance<nb::float_>(value)) return nb::cast<double>(value);
    if (nb::isinstance<nb::str>(value)) return nb::cast<std::string>(value);
    return nb::cast<Sizes>(value);
}

class PyProgram {
   public:
    PyProgram(const PyProgram&) = delete;
    PyProgram& operator=(const PyProgram&) = delete;
    PyProgram(size_t isa, int64_t most_bytes, std::shared_ptr<Workspaces> workspaces)
        : program_(*kernels().at(isa), most_bytes, std::move(workspaces)) {}

    void add_input(const std::string& name, const std::string& dtype, const Sizes& sizes) {
        program_.add_input({name, type_named(dtype), sizes});
    }

    void add_array(const std::string& name, uintptr_t address, const std::string& dtype, const Sizes& sizes) {
        Parameter parameter;
        parameter.name = name;
        parameter.data = at<const void>(address);
        parameter.type = type_named(dtype);
        parameter.sizes = sizes;
        program_.add_parameter(parameter);
    }

    void add_weight(const std::string& name, const Weight& weight, bool table) {
        Parameter parameter;
        parameter.name = name;
        parameter.paged = weight.matrix();
        parameter.sizes = {weight.matrix().out_features, weight.matrix().in_features};
        parameter.table = table;
        program_.add_parameter(parameter);
    }

    void add_rows(const std::string& name, int64_t rows, int64_t columns) {
        Parameter parameter;
        parameter.name = name;
        parameter.sizes = {rows, columns};
        parameter.elsewhere = true;
        program_.add_parameter(parameter);
    }

    void add_node(const std::string& op, const std::vector<int>& operands, const nb::dict& attributes, int outputs) {
        std::map<std::string, Attribute> read;
        for (const auto& [name, value] : attributes) read[nb::cast<std::string>(name)] = attribute_of(value);
        program_.add_node(op, operands, std::move(read), outputs);
    }

    void add_output(int value) { program_.add_output(value); }

    std::vector<std::pair<std::string, Sizes>> outputs(const std::vector<Sizes>& sizes) const {
        std::vector<std::pair<std::string, Sizes>> found;
        for (const View& view : program_.outputs(sizes)) found.emplace_back(text_of(view.type), view.sizes);
        return found;
    }

    void begin(const std::vector<uintptr_t>& addresses, const std::vector<Sizes>& sizes,
               std::shared_ptr<KVCache> cache) {
        std::vector<const void*> data;
        for (uintptr_t address : addresses) data.push_back(at<const void>(address));
        const nb::gil_scoped_release release;  // a plan of a large graph takes long
        program_.begin(std::move(data), sizes, std::move(cache));
    }

    int64_t run(int first, int end, int threads) {
        const nb::gil_scoped_release release;
        return program_.run(first, end, threads);
    }

    int64_t cache_block_bytes(const std::vector<Sizes>& sizes, bool float16) const {
        return program_.cache_block_bytes(sizes, float16);
    }

    void finish() { program_.finish(); }
    void end() { program_.end(); }
    Sizes sizes(int value) const { return program_.value(value).sizes; }
    std::string dtype(int value) const { return text_of(program_.value(value).type); }
    void read(int value, uintptr_t to) const { program_.read(value, at<void>(to)); }
    void write(int value, uintptr_t from, int64_t bytes) { program_.write(value, at<const void>(from), bytes); }
    int64_t activation_bytes() const { return program_.activation_bytes(); }
    int64_t plans_made() const { return program_.plans_made(); }

   private:
    Program program_;
};

}  // namespace

void bind_programs(nb::module_& module) {
    module.def("operators", &operator_names);
    nb::exception<std::length_error>(module, "TooLargeError", PyExc_ValueError);
    nb::class_<KVCache::Piece>(module, "KVPiece")
        .def_ro("tokens", &KVCache::Piece::tokens)
        .def_prop_ro("bytes", &KVCache::Piece::bytes);
    nb::class_<KVCache>(module, "KVCache")
        .def(nb::init<int64_t, bool>(), nb::arg(), nb::arg("float16") = false)
        .def_prop_ro_static("block", [](nb::handle) { return KVCache::kBlock; })
        .def("shorten", &KVCache::shorten)
        .def("select", &KVCache::select)
        .def("piece", &KVCache::piece, nb::call_guard<nb::gil_scoped_release>())
        .def("append", &KVCache::append, nb::call_guard<nb::gil_scoped_release>())
        .def_prop_ro("tokens", &KVCache::tokens)
        .def_prop_ro("batch", &KVCache::batch)
        .def_prop_ro("bytes", &KVCache::bytes);
    nb::class_<Workspaces>(module, "Workspaces").def(nb::init<>()).def_prop_ro("bytes", &Workspaces::bytes);
    nb::class_<PyProgram>(module, "Program")
        .def(nb::init<size_t, int64_t, std::shared_ptr<Workspaces>>())
        .def("add_input", &PyProgram::add_input)
        .def("add_array", &PyProgram::add_array)
        .def("add_weight", &PyProgram::add_weight)
        .def("add_rows", &PyProgram::add_rows)
        .def("add_node", &PyProgram::add_node)
        .def("add_output", &PyProgram::add_output)
        .def("outputs", &PyProgram::outputs)
        .def("begin", &PyProgram::begin, nb::arg("addresses"), nb::arg("sizes"), nb::arg("cache").none())
        .def("run", &PyProgram::run)
        .def("cache_block_bytes", &PyProgram::cache_block_bytes, nb::arg("sizes"), nb::arg("float16"))
        .def("finish", &PyProgram::finish)
        .def("end", &PyProgram::end)
        .def("sizes", &PyProgram::sizes)
        .def("dtype", &PyProgram::dtype)
        .def("read", &PyProgram::read)
        .def("write", &PyProgram::write)
        .def_prop_ro("activation_bytes", &PyProgram::activation_bytes)
        .def_prop_ro("plans_made", &PyProgram::plans_made);
}

}  // namespace weightpager

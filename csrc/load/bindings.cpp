// Memory crosses the border as addresses; weightpager/runtime/paging/native_reads.py has checked what they point to.
#include "bindings.hpp"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <string>

#include "../address.hpp"
#include "raw_reads.hpp"
#include "read_queue.hpp"

namespace nb = nanobind;

namespace weightpager {
namespace {

PageSources sources(size_t count, uintptr_t pages, uintptr_t files, uintptr_t offsets, uintptr_t slots,
                    uintptr_t expected, uintptr_t memory, size_t page_bytes) {
    return {count, at<const int64_t>(pages), at<const int32_t>(files), at<const int64_t>(offsets),
            at<const int64_t>(slots), at<const uint8_t>(expected), at<uint8_t>(memory), page_bytes};
}

nb::bytes packed(const std::vector<int64_t>& pages) {
    return nb::bytes(reinterpret_cast<const char*>(pages.data()), pages.size() * sizeof(int64_t));
}

nb::list listed(const std::vector<Told>& told) {
    nb::list list;
    for (const Told& each : told)
        list.append(nb::make_tuple(each.load, packed(each.pages), static_cast<int>(each.failure), each.error,
                                   each.corrupt_page));
    return list;
}

class Queue {
   public:
    Queue(unsigned reads, size_t bytes, int64_t group_microseconds, bool ring) {
        QueueLimits limits;
        limits.reads = reads;
        limits.bytes = bytes;
        limits.group_microseconds = group_microseconds;
        queue_ = std::make_shared<ReadQueue>([=] { return open_device(ring, reads); }, *hashers()[0], limits);
    }

    // How many reads it takes; -1 if the queue has been closed.
    int64_t load(uint64_t number, int priority, bool cancellable, size_t most, size_t count, uintptr_t pages, uintptr_t files,
                 uintptr_t offsets, uintptr_t slots, uintptr_t expected, uintptr_t memory, size_t page_bytes) {
        nb::gil_scoped_release release;
        std::vector<Read> reads =
            plan_reads(sources(count, pages, files, offsets, slots, expected, memory, page_bytes), most);
        const auto planned = static_cast<int64_t>(reads.size());
        return queue_->add(number, priority, cancellable, std::move(reads)) ? planned : -1;
    }

    // What is told, and the loads that are over; None if nothing will come any more.
    nb::object drive() {
        const std::shared_ptr<ReadQueue> queue = queue_;
        Report report;
        bool more;
        {
            nb::gil_scoped_release release;
            more = queue->drive(report);
        }
        if (!more) return nb::none();
        nb::list over;
        for (uint64_t load : report.over) over.append(load);
        return nb::make_tuple(listed(report.told), over);
    }

    nb::bytes cancel(uintptr_t keep, size_t count) { return packed(queue_->cancel(at<const uint8_t>(keep), count)); }
    void withdraw(uint64_t load) { queue_->withdraw(load); }
    nb::bytes outstanding() const { return packed(queue_->outstanding()); }
    nb::list close() { return listed(queue_->close()); }
    void abandon() { queue_->abandon(); }
    size_t in_flight() const { return queue_->in_flight(); }
    std::string device() const { return queue_->device(); }

   private:
    std::shared_ptr<ReadQueue> queue_;
};

double raw_reads(unsigned threads, size_t most, size_t count, uintptr_t pages, uintptr_t files, uintptr_t offsets,
                 uintptr_t slots, uintptr_t expected, uintptr_t memory, size_t page_bytes) {
    nb::gil_scoped_release release;
    std::vector<Read> reads =
        plan_reads(sources(count, pages, files, offsets, slots, expected, memory, page_bytes), most);
    return time_raw_reads(std::move(reads), threads, *hashers()[0]);
}

std::vector<std::string> hasher_names() {
    std::vector<std::string> names;
    for (const Hasher* hasher : hashers()) names.emplace_back(hasher->name);
    return names;
}

// Of `count` buffers of `bytes` each that lie one behind the other.
nb::bytes digests(size_t hasher, uintptr_t memory, size_t count, size_t bytes) {
    std::vector<Digest> found(count);
    {
        nb::gil_scoped_release release;
        std::vector<const uint8_t*> buffers;
        for (size_t i = 0; i < count; ++i) buffers.push_back(at<const uint8_t>(memory) + i * bytes);
        blake3(*hashers().at(hasher), buffers.data(), count, bytes, found.data());
    }
    return nb::bytes(reinterpret_cast<const char*>(found.data()), found.size() * sizeof(Digest));
}

}  // namespace

void bind_loads(nb::module_& module) {
    module.def("hashers", &hasher_names);
    module.def("digests", &digests);
    module.def("raw_reads", &raw_reads);
    module.def("imitate_storage", &imitate_storage);
    nb::class_<Queue>(module, "ReadQueue")
        .def(nb::init<unsigned, size_t, int64_t, bool>(), nb::kw_only(), nb::arg("reads"), nb::arg("most_bytes"),
             nb::arg("group_microseconds"), nb::arg("ring"))
        .def("load", &Queue::load)
        .def("drive", &Queue::drive)
        .def("cancel", &Queue::cancel)
        .def("withdraw", &Queue::withdraw)
        .def("outstanding", &Queue::outstanding)
        .def("close", &Queue::close)
        .def("abandon", &Queue::abandon)
        .def_prop_ro("in_flight", &Queue::in_flight)
        .def_prop_ro("device", &Queue::device);
}

}  // namespace weightpager

"""What an engine tells about itself: reports, and a map of its pages.

A figure is described once, by its field: a server's state, metrics and page, and ``weightpager top`` show all fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from weightpager.figures import counter, gauge
from weightpager.runtime.memory.feature_cache import FeatureReport
from weightpager.runtime.memory.memory_budget import MemoryUse
from weightpager.runtime.memory.prefix_cache import PrefixReport
from weightpager.runtime.planning.pages import ABSENT, Pages, PrefetchCounts
from weightpager.runtime.row_report import RowReport

if TYPE_CHECKING:  # a reader of reports needs no engine
    from weightpager.engine.open_bundle import OpenBundle
    from weightpager.engine.prefetching import EnginePrefetching
    from weightpager.engine.task_holds import SwitchLog


@dataclass(frozen=True)
class SwitchReport:
    """One switch.

    Attributes:
        from_task: the task that was asked for before; None at the first switch.
        to_task: the task that was switched to.
        pages: pages that were read for it.
        bytes: bytes of these pages.
        reads: reads that brought them.
        load_seconds: seconds spent reading; zero where the switch didn't wait for its pages.
        seconds: from planning to all pages checked and in place, without the building of a module at first use; where
            the switch didn't wait, until it returned.
        waited: whether the switch waited for its pages.
    """

    from_task: str | None
    to_task: str
    pages: int
    bytes: int
    reads: int
    load_seconds: float
    seconds: float
    waited: bool = True


@dataclass(frozen=True)
class PrefetchReport:
    """What prefetching does.

    Attributes:
        pays: whether it goes on; it rests while it would cost more than it saves.
        pages: the pages that it has brought.
        wasted_bytes: bytes of those that were gone before any task needed them.
        hit_rate: share of the switches whose task was the likeliest by the forecast.
        log_loss: bits per switch that forecasts have missed by, the less the better.
    """

    pays: bool = field(metadata=gauge("prefetch_active", "1 while prefetching pays, 0 while it rests."))
    pages: PrefetchCounts = field(metadata=counter("prefetch_pages", "Pages by what prefetching did.", by="result"))
    wasted_bytes: int = field(
        metadata=counter("prefetch_wasted_bytes", "Prefetched and gone before any task needed them.")
    )
    hit_rate: float = field(metadata=gauge("prediction_hit_ratio", "Switches to the task that seemed likeliest."))
    log_loss: float = field(metadata=gauge("prediction_log_loss_bits", "Bits per switch that forecasts miss by."))


@dataclass(frozen=True, kw_only=True)
class EngineFigures:
    """What is shown of an engine: by its own report, and by the state of a server.

    Attributes:
        budget: bytes that may be used.
        slots: pages that fit into the arena.
        resident_pages: pages in it.
        working_set_pages: number of pages that the tasks of the latest visits and those in use need together; more than
            ``slots`` means that switches load again what others have just evicted.
        bytes_read: bytes that were read from storage since the engine was opened.
        direct_io: whether reads bypass the page cache.
        backend: what runs tasks, ``"native"`` or ``"torch"``.
        kernel: instruction set of the kernels.
        rows: what is known of rows on demand; None if there are none, as on a GPU.
        features: what is known of pictures' features that are kept; None where no task reads pictures among its words.
        prefixes: what is known of prompts' beginnings that are kept; None without a ``prefix_cache``.
    """

    budget: int = field(metadata=gauge("budget_bytes", "Memory that weights may take."))
    slots: int = field(metadata=gauge("slots", "Pages that fit into the arena."))
    resident_pages: int = field(metadata=gauge("resident_pages", "Pages in the arena."))
    working_set_pages: int = field(metadata=gauge("working_set_pages", "Pages that the latest tasks need together."))
    bytes_read: int = field(metadata=counter("read_bytes", "Read from storage."))
    direct_io: bool
    backend: str = "unknown"  # where a server of an older version told
    kernel: str
    rows: RowReport | None = None
    features: FeatureReport | None = None
    prefixes: PrefixReport | None = None


@dataclass(frozen=True, kw_only=True)
class EngineReport(EngineFigures):
    """The state of an engine: its `EngineFigures`, and these.

    Attributes:
        memory: bytes of the budget by purpose.
        available_memory: bytes that this process could take beside what it has, by the machine and by the limits of its
            control group; None if unknown.
        locked_pages: pages of tasks in use.
        active: tasks in use.
        reloaded_pages: number of pages that were loaded though they had been in the arena before.
        switches: the latest switches, oldest first.
        prefetch: what prefetching does; None if nothing is prefetched.
    """

    memory: MemoryUse = field(metadata=gauge("memory_bytes", "Memory that weights take, by purpose.", by="purpose"))
    available_memory: int | None
    locked_pages: int = field(metadata=gauge("locked_pages", "Pages of tasks in use."))
    active: tuple[str, ...]
    reloaded_pages: int = field(metadata=counter("reloaded_pages", "Loaded though they had been in the arena."))
    switches: tuple[SwitchReport, ...]
    prefetch: PrefetchReport | None = None


@dataclass(frozen=True, eq=False)
class ResidencyMap:
    """What is in the arena, by layer and task. A picture of one moment: loads go on meanwhile.

    Attributes:
        layers: int32 [pages], the layer that each page belongs to.
        resident: whether each page is in the arena, bool [pages].
        needs: a task's pages, ascending, by task.
    """

    layers: npt.NDArray[np.int32]
    resident: npt.NDArray[np.bool_]
    needs: Mapping[str, Pages]

    def by_layer(self, task: str) -> npt.NDArray[np.int64]:
        """How many of a task's pages are resident, and how many it needs, in each layer: int64 [layers, 2]."""
        count = int(self.layers.max(initial=-1)) + 1
        need = self.needs[task]
        here = need[self.resident[need]]
        counts = [np.bincount(self.layers[pages], minlength=count) for pages in (here, need)]
        return np.stack(counts, axis=1).astype(np.int64)

    def share(self, task: str) -> float:
        """The share of a task's pages that is resident, 0 to 1; 1 for a task without pages."""
        need = self.needs[task]
        return float(self.resident[need].mean()) if len(need) else 1.0


def report_of(opened: OpenBundle, switches: SwitchLog, prefetching: EnginePrefetching | None) -> EngineReport:
    """The state as of now; loads nothing."""
    blocks = opened.residency.blocks
    return EngineReport(
        budget=opened.memory.budget,
        memory=opened.memory.use,
        available_memory=opened.watch.available(),
        slots=blocks.slots,
        resident_pages=len(blocks.resident()),
        working_set_pages=switches.working_set(),
        locked_pages=len(blocks.locked()),
        active=tuple(name for name, task in opened.tasks.items() if task.gate.holders),
        bytes_read=opened.reads.bytes + opened.row_reads.bytes,
        reloaded_pages=blocks.reloads,
        direct_io=opened.direct,
        backend=opened.backend.name,
        kernel=opened.backend.kernel,
        rows=opened.rows.report,
        features=None if opened.bundle.pictures is None else opened.memory.features.report,
        prefixes=opened.memory.prefixes.report if opened.memory.prefixes.room else None,
        switches=switches.latest(),
        prefetch=None if prefetching is None else prefetching.report(),
    )


def residency_of(opened: OpenBundle) -> ResidencyMap:
    """What is in the arena of an open bundle."""
    blocks, layers = opened.residency.blocks, opened.layers
    needs = {name: blocks.needs(task.number) for name, task in opened.tasks.items()}
    return ResidencyMap(layers, blocks.page_table[: len(layers)] != ABSENT, needs)

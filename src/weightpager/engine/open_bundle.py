"""A bundle that an engine has open: its tasks, its pages, and what becomes of them when it changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.kept import Kept, Prefixes
from weightpager.answers.model import CacheSize, FindFeatures, Floats, ModelLimits, TaskModel, computed
from weightpager.backends.backend import Backend
from weightpager.backends.open_backend import open_backend
from weightpager.backends.task_parts import TaskParts, read_parameters
from weightpager.bundle import Bundle, PageIndex
from weightpager.bundle.footprint import page_capacity, whole_rows
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.config import EngineConfig
from weightpager.engine.bundle_change import BundleChange
from weightpager.engine.open_task import OpenTask, SharedTables, TaskTables
from weightpager.engine.page_numbers import PageNumbers, pages_of
from weightpager.errors import TaskTooLargeError, UnknownTaskError, first_line
from weightpager.interrupts import uninterrupted
from weightpager.page_dtype import ENCODINGS
from weightpager.readers.picture import Picture
from weightpager.runtime import sharing
from weightpager.runtime.budget import needs_of
from weightpager.runtime.memory import memory_budget
from weightpager.runtime.memory.memory_budget import MemoryBudget, MemoryWatch
from weightpager.runtime.memory.page_arena import ArenaSource
from weightpager.runtime.paging.page_check import PageCheck
from weightpager.runtime.paging.pager import Pager, PrefetchedPages
from weightpager.runtime.paging.residency import Residency, TaskGate
from weightpager.runtime.paging.state import PagingState
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.pages import NO_PAGES, Pages, Uses
from weightpager.runtime.planning.shares import Holding, Wish
from weightpager.runtime.rows import RowReads, RowTables
from weightpager.store import LocalStore, PageStore, VerifyingStore
from weightpager.store.page_store import is_direct

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _OpenState:
    """A bundle and its tasks, which belong together."""

    bundle: Bundle
    tasks: Mapping[str, OpenTask]


class OpenBundle:
    """All that is opened with a bundle. Modules are built when first asked for, and never change.

    Safe to use from several threads, save that one `reload` must follow another.

    Attributes:
        backend: the backend that makes of tasks what callers run.
        watch: the watch that warns when the budget is more than the machine has.
        page_check: the check of these pages against the bundle's hashes.
        reads: the store of pages of blocks, which checks them and counts their bytes.
        row_reads: the store of pages that hold rows, likewise.
        rows: the tables whose rows come on demand; none on a GPU, where they are whole.
        direct: whether reads bypass the page cache.
        reads_in_flight: how many reads are made at once while pages are loaded.
    """

    @uninterrupted
    def __init__(
        self,
        bundle: Bundle,
        config: EngineConfig,
        open_store: Callable[[Bundle], PageStore] = LocalStore,
        staging: ArenaSource | None = None,
        backend: Backend | None = None,
    ) -> None:
        """Open it. No page is resident. Arguments and errors are those of `Engine`; ``backend`` is open already."""
        self._dtype, self._stated_rows = config.dtype, config.rows
        on_device = config.device.startswith("cuda")
        if on_device:  # kernels there can't wait for storage: tables are whole
            self._stated_rows = whole_rows(bundle)
        self.reads_in_flight = config.io_threads
        self._open_store = open_store
        self._reloads = 0  # counts their beginnings and ends: odd while one is under way
        self.memory = _memory(bundle, config, self._stated_rows, staging)
        arena = self.memory.arena
        self.watch = MemoryWatch(self.memory)
        self.watch.check(self.memory.host_bytes)  # nothing of it is in memory yet
        # All that a task is built from is read now: the bundle may be replaced while the engine runs.
        with uninterrupted.lifted():
            self.backend = backend or open_backend(bundle, config.backend, arena.device)
            self._resident = self.backend.place(read_parameters(bundle, RESIDENT, config.dtype))  # of all tasks
        with ExitStack() as undone:
            with uninterrupted.lifted():
                store = open_store(bundle)
            self.direct = is_direct(store)
            on_demand = {} if on_device else bundle.row_tables
            # Rows are the same in every state of the bundle, and are read from the files that are opened here.
            rows = np.arange(bundle.manifest.pages, len(bundle.index)) if on_demand else NO_PAGES
            self._numbers = PageNumbers(bundle, store, page_capacity(bundle), rows)
            self.reads = VerifyingStore(self._numbers.store, self._numbers.index)
            undone.callback(self.reads.close)
            tables = SharedTables(bundle, np.arange(len(bundle.pages)))
            tasks = {
                name: self._read_task(bundle, name, number, tables.of(name)) for number, name in enumerate(bundle.tasks)
            }
            self._check(bundle, tasks)
            self._state = _OpenState(bundle, tasks)
            pager = Pager(arena, config.io_threads)
            undone.callback(pager.close)
            self.row_reads = VerifyingStore(store, bundle.index)  # closed with the other
            row_reads = RowReads(pager, self.row_reads, config.read_timeout)
            self.rows = RowTables(bundle, on_demand, self.memory.split.rows, row_reads)
            if not config.in_share:
                self.rows.fill()
            self._paging = self._new_paging_state(bundle, pager, config.read_timeout)
            self.residency = Residency(self._paging)
            self.page_check = PageCheck(self._paging)
            self._page_table = arena.table(self._paging.blocks.page_table)
            undone.pop_all()

    def _new_paging_state(self, bundle: Bundle, pager: Pager, read_timeout: float) -> PagingState:
        capacity, numbers = page_capacity(bundle), np.arange(len(bundle.pages))
        needs = [pages_of(bundle, name, numbers) for name in bundle.tasks]
        slots, arena = self.memory.split.slots, self.memory.arena
        return PagingState(
            blocks=BlockManager(needs, capacity, slots, arena.capacity, together=arena.together),
            prefetched=PrefetchedPages(capacity),
            memory=self.memory,
            index=self._numbers.index,
            pager=pager,
            store=self.reads,
            read_timeout=read_timeout,
        )

    def _read_task(self, bundle: Bundle, name: str, number: int, tables: TaskTables) -> OpenTask:
        """Read all that one of a bundle's tasks is built from."""
        with uninterrupted.lifted():
            return OpenTask(
                number=number,
                private=self.backend.place(read_parameters(bundle, private_file(name), self._dtype)),
                gate=TaskGate(name, self.memory.arena.note_read),
                tables=tables,
            )

    def _check(self, bundle: Bundle, tasks: Mapping[str, OpenTask]) -> None:
        self.backend.check(bundle, {name: self._resident | task.private for name, task in tasks.items()})

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was when it was opened or last reloaded."""
        return self._state.bundle

    @property
    def layers(self) -> npt.NDArray[np.int32]:
        """int32 [pages], the model layer of each page by its number; of numbers that are free it means nothing."""
        return self._paging.index.layers

    @property
    def tasks(self) -> Mapping[str, OpenTask]:
        """Tasks by name. `reload` replaces the mapping and never changes it: two calls may give two mappings."""
        return self._state.tasks

    def task(self, name: str) -> OpenTask:
        return _task(self._state, name)

    def task_and_module(self, name: str) -> tuple[OpenTask, Any]:
        """A task and what its callers run, of the same state of the bundle.

        Raises:
            UnknownTaskError: the bundle has no such task.
            BundleFormatError: its parameters don't make up the module.
        """
        state = self._state
        task = _task(state, name)
        if task.module is None:
            with uninterrupted.lifted(), task.building:
                task.module = task.module or self._build(state.bundle, name, task)
        return task, task.module

    def model(self, name: str) -> TaskModel:
        """What answers need of a task. Errors are those of `task_and_module`."""
        task, module = self.task_and_module(name)
        with task.building:
            task.model = task.model or self.backend.model(module)
        return task.model

    def dtype(self, name: str) -> str:
        return self.backend.dtype(self._resident | self.task(name).private)

    def features(self, name: str) -> FindFeatures:
        """What gives pictures' features to a task: kept ones, or what its model computes."""

        def find(model: TaskModel, picture: Picture) -> Floats:
            return self.memory.features.get((whose, picture.key), lambda: computed(model, picture))

        pictures = self.bundle.pictures
        # Tasks that compute in different dtypes have different bits of the same tower's features.
        whose = f"dtype {self.dtype(name)}" if pictures is None or pictures.blocks == "shared" else f"task {name}"
        return find

    def kept(self, name: str) -> Kept:
        """What a batch of a task may take over of earlier ones."""
        prefixes = self.memory.prefixes
        root = prefixes.root(self.task(name).identity)
        return Kept(self.features(name), Prefixes(prefixes, root) if prefixes.room else None)

    @property
    def limits(self) -> ModelLimits:
        """How much the model can read, and the memory that this takes, by the widest numbers of any task."""
        return self.backend.limits(self.bundle, self._widest())

    def cache_size(self) -> CacheSize:
        """What keys and values take. What is meant, and errors, are those of `Engine.cache_size`."""
        bundle = self.bundle
        writers = {(task.kind, bundle.dropped(name)): name for name, task in bundle.tasks.items() if task.writes}
        sizes = (self.backend.cache_size(self._built(name), self._widest()) for name in writers.values())
        return max(sizes, key=lambda size: size.bytes(1, 1), default=CacheSize())

    def _built(self, name: str) -> Any:
        """A task's module, which isn't kept where nobody has run it yet: what many tasks need may be much."""
        state = self._state
        task = _task(state, name)
        with uninterrupted.lifted(), task.building:
            return task.module or self._build(state.bundle, name, task)

    def _widest(self) -> int:
        return max(ENCODINGS[self.dtype(name)].bits // 8 for name in self.tasks)

    def check_fits(self, name: str, beside: Iterable[str]) -> None:
        """Check that the budget can ever hold a task beside these. Errors are those of `Engine.check_fits`.

        During a reload nothing is refused: the pages may be one bundle's and the budget another's.
        """
        reloads = self._reloads
        refusal = self._refusal(name, beside)
        if refusal is not None and reloads == self._reloads and not reloads % 2:
            raise refusal

    def _refusal(self, name: str, beside: Iterable[str]) -> TaskTooLargeError | None:
        together = {name: self.task(name), **{other: self.tasks[other] for other in beside}}
        pages = self.residency.blocks.needed_together([task.number for task in together.values()])
        parts = {part for task in together.values() for part in task.tables.parts}
        tables = sum(part.nbytes for part in parts)
        if pages <= self.memory.slots_beside(tables):
            return None
        what = f"task {name!r}{' beside the real-time tasks' if beside else ''}"
        error = self.memory.too_small(what, pages, tables=tables)
        return TaskTooLargeError(f"task {name!r} can't run: {error}", error.smallest)

    def holding(self, uses: Mapping[str, float]) -> Holding:
        """What it has of a budget that several bundles share, by the expected uses of its tasks."""
        memory, blocks = self.memory, self.residency.blocks
        with self._paging.lock:
            in_use = memory.tables.in_use
            return sharing.holding(memory.needs, blocks, memory.budget, self._expected(uses), tables=in_use)

    def wanted(self, uses: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """Expected uses of the pages that it lacks, by those of its tasks, descending."""
        with self._paging.lock:
            return sharing.wanted(self.residency.blocks, self._expected(uses))

    def _expected(self, uses: Mapping[str, float]) -> Uses:
        """Expected uses of each task by number, of those by name."""
        expected = np.zeros(self.residency.blocks.tasks)
        for name, task in self.tasks.items():
            expected[task.number] = uses.get(name, 0.0)
        return expected

    def wish(self, name: str) -> Wish:
        """What it wants of that budget for a task. Raises an `UnknownTaskError` where there is no such task."""
        memory, task = self.memory, self.task(name)
        with self._paging.lock:
            tables = memory.tables.needed(task.tables)
            return sharing.wish(memory.needs, self.residency.blocks, task.number, tables=tables)

    def resize(self, budget: int, uses: Mapping[str, float] | None = None) -> None:
        """Use another budget. Arguments and errors are those of `Engine.set_share`."""
        self._resize(budget, None if uses is None else self._expected(uses))

    def check_memory(self) -> None:
        """Warn if the budget is more than the machine has."""
        self.watch.check(self.memory.arena.untouched)

    def _resize(self, budget: int, expected_uses: Uses | None = None) -> None:
        # What shrinks shrinks first: rows and pages together never take more than the larger budget.
        self.rows.resize(min(self.rows.room, self.memory.needs.rows(budget)))
        try:
            self.residency.resize(budget, expected_uses)
        finally:
            self.rows.resize(self.memory.split.rows)

    def reload(self) -> BundleChange:
        """Take over what has become of the bundle since. Returns what that was. Errors are those of `Engine.reload`."""
        with uninterrupted.lifted():
            bundle = Bundle.open(self.bundle.path)
        change = BundleChange.between(self.bundle, bundle)
        self.residency.check_unused(self._leaving(change))  # before the budget could be blamed
        before = self.memory.needs
        self._reloads += 1
        try:
            self.resize(self.memory.refit(needs_of(bundle, self._dtype, self._stated_rows)))
            self.check_memory()
            self._take_over(bundle, change)
        except BaseException:
            self._resize(self.memory.refit(before))
            raise
        finally:
            self._reloads += 1
        self.memory.features.clear()
        self._close_unused()
        return change

    def _leaving(self, change: BundleChange) -> dict[str, int]:
        """The numbers of the tasks that a change takes away, by name."""
        return {name: self.tasks[name].number for name in (*change.removed, *change.changed)}

    def _take_over(self, bundle: Bundle, change: BundleChange) -> None:
        """Take over a changed bundle. All that can fail comes first."""
        numbers = self._numbers.of(bundle)
        tables = SharedTables(bundle, numbers)
        gone = self._leaving(change)
        stay = {name: task for name, task in self.tasks.items() if name not in gone}
        for name, task in stay.items():
            tables.take_over(name, task.tables)
        new = (*change.added, *change.changed)
        come = {name: self._read_task(bundle, name, -1, tables.of(name)) for name in new}
        self._check(bundle, come)
        added = self._replace_tasks(bundle, numbers, gone, come)
        for task, number in zip(come.values(), added, strict=True):
            task.number = number
        for name in gone:
            self.memory.tables.forget(self.tasks[name].tables)
        self._state = _OpenState(bundle, stay | come)

    def _replace_tasks(
        self, bundle: Bundle, numbers: npt.NDArray[np.int64], gone: dict[str, int], come: Iterable[str]
    ) -> list[int]:
        """Have tasks leave and others come, and pages read from the bundle's store. Returns the new tasks' numbers.

        Without new pages what is open is enough.
        """
        needs = [pages_of(bundle, name, numbers) for name in come]
        with ExitStack() as undone:
            store: PageStore | None = None
            if len(self._numbers.new_among(numbers)):
                with uninterrupted.lifted():
                    store = self._open_store(bundle)
                undone.callback(store.close)

            def take_over(kept: Pages, busy: Pages) -> PageIndex:
                index = self._numbers.take_over(bundle, numbers, store, kept, busy)
                undone.pop_all()
                return index

            return self.residency.replace_tasks(gone, needs, numbers, take_over)

    def _close_unused(self) -> None:
        """Give back what only earlier states of the bundle needed. A failure isn't the reload's, which is over."""
        try:
            self._numbers.store.close_unused()
        except Exception as error:  # noqa: BLE001 - whatever a store raises
            _log.warning("files of an earlier state of the bundle could not be closed: %s", first_line(error))

    def _build(self, bundle: Bundle, name: str, task: OpenTask) -> Any:
        with self.memory.tables.borrowed(task.tables):
            return self.backend.build(
                TaskParts(
                    bundle=bundle,
                    name=name,
                    tables=task.tables.blocks.tables,
                    weights=task.tables.blocks.weights,
                    parameters=self._resident | task.private,
                    low_rank={} if task.tables.low_rank is None else task.tables.low_rank.tables,
                    gate=task.gate,
                    arena=self.memory.arena.pages,
                    page_table=self._page_table,
                    rows=self.rows.caches,
                )
            )


def _task(state: _OpenState, name: str) -> OpenTask:
    task = state.tasks.get(name)
    if task is None:
        raise UnknownTaskError(name, state.bundle.tasks)
    return task


def _memory(bundle: Bundle, config: EngineConfig, rows: int | None, staging: ArenaSource | None) -> MemoryBudget:
    return MemoryBudget(
        config.budget,
        needs_of(bundle, config.dtype, rows),
        kv_reserve=config.kv_reserve,
        prefix_cache=config.prefix_cache,
        capacity=page_capacity(bundle),
        staging=staging or memory_budget.staging(config.device, bundle.page_bytes, config.io_threads),
    )

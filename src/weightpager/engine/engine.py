"""`Engine`: a bundle opened under a memory budget."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from weightpager import kernels
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig, parse_size
from weightpager.engine.bundle_change import BundleChange
from weightpager.engine.forecasts import ForecastReport, Forecasts
from weightpager.engine.model import architecture
from weightpager.engine.open_bundle import OpenBundle
from weightpager.engine.open_task import OpenTask
from weightpager.engine.prefetch_policy import prefetch_policy, reuse_after
from weightpager.engine.report import EngineReport, PrefetchReport, SwitchReport
from weightpager.engine.residency_map import ResidencyMap
from weightpager.engine.switch_log import SwitchLog
from weightpager.errors import BudgetError, ConfigError, EngineClosedError, TaskNotActiveError, TaskTooLargeError
from weightpager.runtime.history.history_file import HistoryFile
from weightpager.runtime.history.task_monitor import TaskMonitor
from weightpager.runtime.memory.staged_arena import Staging
from weightpager.runtime.paging.pager import Priority
from weightpager.runtime.paging.switch_request import LoadStats, SwitchRequest
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.prediction.planner import Planner
from weightpager.runtime.prefetch.prefetcher import Foresight, Prefetcher, Switched
from weightpager.store import LocalStore, PageStore

_NOTHING = LoadStats()
"""Was loaded."""


class Engine:
    """Runs a bundle's tasks inside one memory budget.

    A task's module is built once and never changes: a switch changes which pages are in the arena. Outputs are
    bit-equal to those of a freshly opened engine, whatever was run before (same machine, threads and input shape).

    Safe to use from several threads. One switch loads at a time; a task that is resident is entered at once, whatever
    switch is going on. A process that was forked must open an engine of its own.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: EngineConfig,
        open_store: Callable[[Bundle], PageStore] = LocalStore,
        staging: Staging | None = None,
    ) -> None:
        """Open a bundle; `from_pretrained` is the usual way.

        Args:
            bundle: validated.
            config: budget, devices, and tasks that never leave memory.
            open_store: opens where a bundle's pages come from, now and when it is reloaded; its own files unless
                stated. The engine checks each page, and closes the store.
            staging: how pages reach the arena; as the configured device wants it if None.

        Raises:
            ConfigError: the device isn't there.
            BudgetError: not even the smallest task fits into the budget, or not all real-time tasks together.
            BundleError, StoreError: a file is damaged or can't be opened.
        """
        for name in config.real_time:
            bundle.task(name)
        self._open = OpenBundle(bundle, config, open_store, staging)
        self._residency, self._memory = self._open.residency, self._open.memory
        self._process = os.getpid()
        weakref.finalize(self, _in_process, self._process, self._residency.close)
        self.monitor = TaskMonitor(file=None if config.history is None else HistoryFile(config.history))
        weakref.finalize(self, _in_process, self._process, self.monitor.close)
        self._activating = threading.RLock()  # `activate` and `deactivate`, one after the other
        self._changing = threading.Lock()  # budget or bundle
        self._lock = threading.RLock()  # pins; never kept while storage works
        self._current: str | None = None
        self._closed = False
        self._switches = SwitchLog(self._open, self.monitor)
        self._forecasts = Forecasts(self._open, self.monitor)
        self._real_time = frozenset(config.real_time)
        self._planner: Planner | None = None if isinstance(config.prefetch, bool) else config.prefetch
        self._prefetcher: Prefetcher | None = None
        self._enter_real_time()
        if config.prefetch:
            self._prefetcher = Prefetcher(self._residency, bundle.page_bytes, self._policy())
            weakref.finalize(self, _in_process, self._process, self._prefetcher.close)

    @classmethod
    def from_pretrained(
        cls,
        bundle: str | Path,
        *,
        budget: str | int | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        io_threads: int = 4,
        kv_reserve: str | int = 0,
        real_time: Sequence[str] = (),
        read_timeout: float = 30.0,
        prefetch: bool | Planner = False,
        history: str | Path | None = None,
    ) -> Engine:
        """Open a bundle directory.

        Args:
            bundle: directory that ``weightpager compile`` wrote.
            budget: memory for weights, such as ``"64MiB"``; None for all that the bundle holds.
            device: where the arena lives and tasks run: "cpu", "cuda" or "cuda:N"; inputs must be there too.
            dtype: what tasks compute in: "auto" as the bundle's parameters are, "bfloat16" for less memory, and for
                speed where the CPU multiplies bfloat16; pages keep their own.
            io_threads: reads in flight while pages are loaded.
            kv_reserve: part of the budget that is left to KV caches.
            real_time: tasks that are loaded now and never leave memory.
            read_timeout: seconds without any page after which a load fails.
            prefetch: whether to prefetch, between switches, what the next task probably needs, as far as the budget
                has room. A function tells the next task better than the past does: it gets the visits so far, oldest
                first, and gives a weight to each task that may come next.
            history: file that keeps which task ran when, so that habits needn't be learnt again after a restart; it
                is made if there is none, and holds task names and times only.

        Raises:
            ConfigError: an argument is wrong, or the device isn't there.
            UnknownTaskError: the bundle has no task that ``real_time`` names.
            BundleError, StoreError: the bundle can't be used.
            BudgetError: not even the smallest task fits, or not all real-time tasks; names the smallest budget that
                would do.
        """
        if isinstance(real_time, str):
            raise ConfigError(f"real_time: expected names of tasks, such as [{real_time!r}], got a text")
        config = EngineConfig(
            budget=None if budget is None else parse_size(budget),
            device=device,
            dtype=dtype,
            io_threads=io_threads,
            kv_reserve=0 if kv_reserve == 0 else parse_size(kv_reserve),
            real_time=tuple(real_time),
            read_timeout=read_timeout,
            prefetch=prefetch,
            history=None if history is None else Path(history),
        )
        # The tokenizer, and what the bundle becomes, are read later, when the process may have gone elsewhere.
        return cls(Bundle.open(Path(bundle).absolute()), config)

    @contextmanager
    def task(self, name: str, *, wait: bool = True, timeout: float | None = None) -> Iterator[nn.Module]:
        """A task's module, usable inside the ``with`` block; its pages stay until the block ends.

        Nests, and several threads may each hold a task, as long as the tasks fit together.

        Args:
            name: of the task.
            wait: whether to enter the block only when all pages are there. Otherwise the module runs while its pages
                are loaded: each layer waits for its own, and a page that can't be loaded raises `SwitchFailedError`
                from ``forward``.
            timeout: seconds to wait for room that other threads' tasks take, during which they may switch, and for
                their switches. None waits for a switch as long as it takes, and never for room.

        Raises:
            UnknownTaskError: the bundle has no such task.
            BundleFormatError: its parameters don't make up the module.
            BudgetError: its pages don't fit beside those in use; a TaskTooLargeError if they never will.
            BusyError: the timeout passed during another switch.
            ConfigError: the timeout is no number of seconds.
            StoreError, PageCorruptError: a page could not be loaded; all other tasks are as they were.
            EngineClosedError: the engine has been closed.
        """
        module = self._hold(name, wait=wait, timeout=timeout)
        try:
            yield module
        finally:
            self._release(name)

    def activate(self, name: str, *, wait: bool = True, timeout: float | None = None) -> nn.Module:
        """Make a task the current one until the next `activate`; its module.

        The task that was current before is left only when the new one is in place. If both don't fit together, it is
        given up after as much of the new one as possible has been loaded. With ``wait=False`` it is left at once, and
        the module runs while its pages are loaded; arguments are those of `task`.

        Raises:
            UnknownTaskError, BundleFormatError, BudgetError, BusyError, StoreError, PageCorruptError: the old task is
                still current and whole.
            EngineClosedError: the engine has been closed.
            SwitchFailedError: loading failed after the old task was given up; no task is current.
        """
        with self._activating:
            if name == self._current and self._is_in_place(name, wait=wait):
                module = self.module(name)
                self._tell(self._tasks[name].number, self.monitor.record(name) != name)
                return module
            leaving = None if name == self._current else self._current
            module = self._hold(name, leaving, wait=wait, timeout=timeout)
            left, self._current = self._current, name
            if left is not None:
                self._release(left)
            return module

    def module(self, name: str) -> nn.Module:
        """A task's module, built now if it wasn't yet, so that its first use takes no longer than any other.

        It runs while the task is active, and raises `TaskNotActiveError` otherwise.

        Raises:
            UnknownTaskError: the bundle has no such task.
            BundleFormatError: its parameters don't make up the module.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        return self._open.entrance(name)[1]

    def dtype(self, name: str) -> torch.dtype:
        """What a task computes in.

        Raises:
            UnknownTaskError: the bundle has no such task.
        """
        return self._open.dtype(name)

    def check_fits(self, name: str) -> None:
        """Whether the budget ever holds a task, beside real-time ones; loads nothing.

        Raises:
            UnknownTaskError: the bundle has no such task.
            TaskTooLargeError: it never does; says the smallest budget that would do.
        """
        self._check_process()
        tasks = self._open.task(name), *(self._tasks[other] for other in self._real_time)
        pages = self.blocks.needed_together([task.number for task in tasks])
        if pages > self.blocks.slots:
            beside = " beside the real-time tasks" if self._real_time else ""
            found = self._memory.too_small(f"task {name!r}{beside}", pages)
            raise TaskTooLargeError(f"task {name!r} can't run: {found}", found.smallest)

    def deactivate(self) -> None:
        """Leave the current task, if any; its pages stay until their slots are wanted."""
        self._check_process()
        with self._activating:
            self._leave_current()

    def pin(self, name: str) -> None:
        """Load a task and keep its pages until `unpin`; that is no visit. Errors are those of `task`."""
        self._hold(name, asked=False)
        with self._lock:
            self._tasks[name].pins += 1

    def unpin(self, name: str) -> None:
        """Undo one `pin`.

        Raises:
            UnknownTaskError: the bundle has no such task.
            TaskNotActiveError: the task isn't pinned.
        """
        self._check_process()
        self.bundle.task(name)
        with self._lock:
            if not self._tasks[name].pins:
                raise TaskNotActiveError(f"task {name!r} is not pinned")
            self._tasks[name].pins -= 1
        self._release(name)

    def prefetch(self, name: str) -> int:
        """Begin to load a task that comes soon, once no switch is going on; how many pages were queued for that.

        They go where no task in use has any. Whatever somebody waits for is read first, and a switch that must load
        takes back what hasn't begun; so does a task that is named later where both have no room. Nothing keeps the
        pages once they are there: `pin` does.

        Raises:
            UnknownTaskError: the bundle has no such task.
            BudgetError: its pages don't fit beside those in use; nothing has changed.
            BusyError: the task has just left the bundle.
            StoreTimeoutError: reads that hang have memory that is needed; what was named before may be taken back.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        number = self._open.task(name).number
        reuse = partial(reuse_after, number, self._open, self.monitor)
        return self._residency.prefetch(SwitchRequest(number, name, reuse=reuse))

    def evict(self) -> int:
        """Drop all pages that no task in use needs; how many went."""
        self._check_process()
        return self._residency.evict_unlocked()

    def set_budget(self, budget: str | int) -> None:
        """Use more or less memory from now on; the arena stays where it is, and so do the modules.

        Pages of tasks that aren't in use go if they must, and their memory goes back to the machine. More than the
        whole bundle needs isn't used. More than the machine has is said in the log.

        Raises:
            ConfigError: it is no size.
            BudgetError: the tasks in use need more, or not even the smallest task would fit; nothing has changed.
            StoreTimeoutError: reads that hang have memory that must go; nothing has changed.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        with self._changing:
            self._open.resize(parse_size(budget))
            self._renew_policy()

    def verify(self) -> list[int]:
        """Indices of resident pages whose bytes no longer match their BLAKE3; empty if all is well."""
        self._check_process()
        return self._open.page_check.damaged()

    def repair(self) -> list[int]:
        """Load damaged pages again, each into its place; which they were.

        A forward that runs meanwhile may have read the damage; one that starts later reads what is right.

        Raises:
            StoreError, PageCorruptError: storage doesn't have a page as it should be.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        return self._open.page_check.repair()

    def reload(self) -> BundleChange:
        """Take over what has become of the bundle since: tasks that were added, removed, or compiled anew.

        Other tasks go on, also while this runs; their pages are known by content, wherever they lie now. Modules of
        tasks that left or changed can't be entered any more. A budget that wasn't stated grows with the bundle.

        Returns:
            What has changed.

        Raises:
            BundleError, StoreError: the bundle is damaged, or of another model; nothing has changed.
            BusyError: a task that was removed or changed is in use; nothing has changed.
            BudgetError: the bundle's parameters leave too little room for the tasks in use; nothing has changed.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        with self._activating, self._changing:
            change = self._open.reload()
            self._renew_policy()
            return change

    def tokenizer(self) -> Any:
        """The bundle's tokenizer; read from its files when asked for.

        Raises:
            BundleFormatError: transformers can't read it, or the tasks read images.
        """
        return architecture.tokenizer(self.bundle)

    def image_processor(self) -> Any:
        """The image processor of a bundle whose tasks read images; read from its files when asked for.

        Raises:
            BundleFormatError: transformers can't read it, or the tasks read texts.
            ConfigError: Pillow isn't installed.
        """
        return architecture.image_reader(self.bundle).processor

    def report(self) -> EngineReport:
        """The engine's state."""
        self._check_process()
        blocks = self._residency.blocks
        return EngineReport(
            budget=self._memory.budget,
            memory=self._memory.use,
            available_memory=self._open.watch.available(),
            slots=blocks.slots,
            resident_pages=len(blocks.resident()),
            locked_pages=len(blocks.locked()),
            active=tuple(name for name, task in self._tasks.items() if task.gate.holders),
            direct_io=self._open.direct,
            kernel=kernels.isa(self._memory.arena.pages.device),
            bytes_read=self._open.reads.bytes,
            working_set_pages=self._switches.working_set(),
            reloaded_pages=blocks.reloads,
            switches=self._switches.latest(),
            prefetch=self._prefetch_report(),
        )

    @property
    def last_switch(self) -> SwitchReport | None:
        """The latest of the report's switches; None before the first."""
        return self._switches.last

    def residency(self) -> ResidencyMap:
        """Which pages are in the arena now, by layer and task; loads nothing."""
        self._check_process()
        blocks = self.blocks
        needs = {name: blocks.needs(task.number) for name, task in self._tasks.items()}
        return ResidencyMap.of(self._open.layers, blocks.page_table, needs)

    def forecast(self) -> ForecastReport | None:
        """What probably comes next by what has been learnt, whether anything is prefetched or not; loads nothing.

        The history is caught up with when this is called. A planner isn't asked. None before the first request.
        """
        return self._forecasts.now()

    def resident_tasks(self) -> frozenset[str]:
        """Tasks that could be entered now without loading anything."""
        self._check_process()
        return frozenset(name for name, task in self._tasks.items() if self.blocks.is_resident(task.number))

    def close(self) -> None:
        """Drop queued loads, finish those in flight and close the bundle's files; modules must not be called any more.

        Whoever waits for a load gets an `EngineClosedError`. In a process that was forked nothing happens: threads and
        files are its parent's.

        Raises:
            StoreError: the store couldn't be closed; all else is.
        """
        if self._forked:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with ExitStack() as closing:  # all of it, also where the store can't be closed; from the last to the first
            closing.callback(self.deactivate)
            closing.callback(self.monitor.close)
            closing.callback(self._residency.close)
            if self._prefetcher is not None:
                closing.callback(self._prefetcher.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was when it was opened or last reloaded."""
        return self._open.bundle

    @property
    def blocks(self) -> BlockManager:
        """The page table and its policy, for inspection and tests."""
        return self._residency.blocks

    @property
    def _tasks(self) -> Mapping[str, OpenTask]:
        return self._open.tasks

    @property
    def _forked(self) -> bool:
        """Whether this process isn't the one that opened the engine."""
        return os.getpid() != self._process

    def _check_process(self) -> None:
        if self._forked:
            raise EngineClosedError("the engine belongs to the process that this one was forked from; open the bundle")

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise EngineClosedError("the engine is closed; open the bundle again")

    def _enter_real_time(self) -> None:
        try:
            for name in sorted(self._real_time):
                self._hold(name, asked=False)  # and never release
        except BaseException:
            self.close()
            raise

    def _hold(
        self,
        name: str,
        leaving: str | None = None,
        *,
        wait: bool = True,
        timeout: float | None = None,
        asked: bool = True,
    ) -> nn.Module:
        self._check_open()
        task, module = self._open.entrance(name)
        start = time.perf_counter()
        request = SwitchRequest(
            task.number,
            name,
            leaving=None if leaving is None else self._tasks[leaving].number,
            give_up=self._leave_current,
            deadline=_deadline(timeout),
            wait=wait,
            priority=Priority.REAL_TIME if name in self._real_time else Priority.ON_DEMAND,
            reuse=partial(reuse_after, task.number, self._open, self.monitor),
        )
        try:
            stats, loading = self._residency.bring_in(request)
        except BudgetError:
            self.check_fits(name)  # says so if it is no matter of who leaves
            raise
        task.gate.hold(None if loading is None else loading.pending)
        try:
            seconds, waited = time.perf_counter() - start, loading is None
            before = self._switches.entered(name, stats, seconds, waited=waited, asked=asked)
            self._tell(task.number, asked and before != name, stats)
        except BaseException:  # Ctrl-C, say: who hasn't got the module can't leave the task
            self._release(name)
            raise
        return module

    def _tell(self, task: int, switched: bool, stats: LoadStats = _NOTHING) -> None:
        if switched and self._prefetcher is not None:
            self._prefetcher.tell(Switched(task, time.monotonic(), stats))

    def _release(self, name: str) -> None:
        task = self._tasks[name]
        try:
            task.gate.release()
        finally:
            self._residency.let_go(task.number)

    def _is_in_place(self, name: str, *, wait: bool) -> bool:
        """Whether a task that is held needn't be loaded, or waited for."""
        gate = self._tasks[name].gate
        return gate.is_ready or not (wait or gate.has_failed)

    def _leave_current(self) -> None:
        if self._current is not None:
            name, self._current = self._current, None
            self._release(name)

    def _policy(self) -> PrefetchPolicy:
        return prefetch_policy(self._open, self.monitor, self._planner, self._real_time)

    def _renew_policy(self) -> None:
        if self._prefetcher is not None:
            self._prefetcher.renew(self._policy())

    def _prefetch_report(self) -> PrefetchReport | None:
        if self._prefetcher is None:
            return None
        score = self._prefetcher.score
        return PrefetchReport(self._prefetcher.pays, self._residency.prefetched, score.hit_rate, score.log_loss)


def _in_process(process: int, close: Callable[[], None]) -> None:
    """Not in a process that was forked, whose parent goes on with threads and files."""
    if os.getpid() == process:
        close()


def _deadline(timeout: float | None) -> float | None:
    """By `time.monotonic`."""
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ConfigError(f"timeout: expected seconds from 0, or None, got {timeout}")
    return time.monotonic() + timeout

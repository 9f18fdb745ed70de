"""`Engine`: a bundle opened under a memory budget."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightpager import kernels
from weightpager.bundle import Bundle
from weightpager.bundle.adapter import LowRank, read_adapter
from weightpager.bundle.footprint import footprint
from weightpager.bundle.reader import RESIDENT, private_file
from weightpager.config import EngineConfig, parse_size
from weightpager.engine import architecture, task_module
from weightpager.engine.parameters import read_parameters
from weightpager.engine.report import EngineReport, SwitchReport
from weightpager.errors import EngineClosedError, TaskNotActiveError
from weightpager.runtime.block_manager import BlockManager
from weightpager.runtime.memory_controller import MemoryController
from weightpager.runtime.pager import LoadStats, Pager
from weightpager.runtime.residency import Residency
from weightpager.runtime.switch_plan import Pages
from weightpager.runtime.task_gate import TaskGate
from weightpager.runtime.task_monitor import TaskMonitor
from weightpager.store import CountingStore, LocalStore, PageStore, VerifyingStore

_SWITCHES_KEPT = 1000


@dataclass
class _Task:
    """What the engine knows of one task. ``module`` is built when first asked for."""

    pages: Pages
    private: dict[str, Tensor]
    low_rank: dict[str, LowRank]
    gate: TaskGate
    pins: int = 0
    module: nn.Module | None = None


class Engine:
    """Runs a bundle's tasks inside one memory budget.

    A task's module is built once and never changes: a switch changes which pages are in the arena. Outputs are
    bit-equal to those of a freshly opened engine, whatever was run before (same machine, threads and input shape).

    Safe to use from several threads; one switch at a time.
    """

    def __init__(self, bundle: Bundle, config: EngineConfig, store: PageStore | None = None) -> None:
        """Open a bundle; `from_pretrained` is the usual way.

        Args:
            bundle: validated.
            config: budget and devices.
            store: where pages come from; the bundle's own files if None. The engine checks each page, and closes it.

        Raises:
            BudgetError: not even the smallest task fits into the budget.
            BundleError, StoreError: a file is damaged or can't be opened.
        """
        self.bundle = bundle
        self._lock = threading.RLock()
        self._current: str | None = None
        self._closed = False
        self.monitor = TaskMonitor()
        self._switches: deque[SwitchReport] = deque(maxlen=_SWITCHES_KEPT)
        self._memory = _memory(bundle, config)
        # All that a module is built from is read now: the bundle may be replaced while the engine runs.
        self._config = architecture.read_config(bundle)
        self._resident = read_parameters(bundle, RESIDENT)
        self._tasks = {name: _task(bundle, name) for name in bundle.tasks}
        local = LocalStore(bundle) if store is None else store
        self._direct = bool(getattr(local, "direct", False))
        self._reads = CountingStore(local)
        pager = Pager(
            VerifyingStore(self._reads, bundle.pages), self._memory.slot, bundle.page_bytes, config.io_threads
        )
        self._residency = Residency(bundle.pages, self._memory, pager)
        self._page_table = torch.from_numpy(self._residency.blocks.page_table)

    @classmethod
    def from_pretrained(
        cls, bundle: str | Path, *, budget: str | int | None = None, device: str = "cpu", io_threads: int = 4
    ) -> Engine:
        """Open a bundle directory.

        Args:
            bundle: directory that ``weightpager compile`` wrote.
            budget: memory for weights, such as ``"64MiB"``; None for all that the bundle holds.
            device: where the arena lives.
            io_threads: reads in flight while pages are loaded.

        Raises:
            ConfigError: an argument is wrong.
            BundleError, StoreError: the bundle can't be used.
            BudgetError: not even the smallest task fits; names the smallest budget that would do.
        """
        size = None if budget is None else parse_size(budget)
        return cls(Bundle.open(bundle), EngineConfig(size, device, io_threads))

    @contextmanager
    def task(self, name: str) -> Iterator[nn.Module]:
        """A task's module, usable inside the ``with`` block; its pages stay until the block ends.

        Nests, and several threads may each hold a task, as long as the tasks fit together.

        Raises:
            UnknownTaskError: the bundle has no such task.
            BundleFormatError: its parameters don't make up the module.
            BudgetError: its pages don't fit beside those in use.
            StoreError, PageCorruptError: a page could not be loaded; all other tasks are as they were.
            EngineClosedError: the engine has been closed.
        """
        with self._lock:
            module = self._hold(name)
        try:
            yield module
        finally:
            with self._lock:
                self._release(name)

    def activate(self, name: str) -> nn.Module:
        """Make a task the current one until the next `activate`; its module.

        The task that was current before is left only when the new one is in place. If both don't fit together, it is
        given up after as much of the new one as possible has been loaded.

        Raises:
            UnknownTaskError, BundleFormatError, BudgetError, StoreError, PageCorruptError: the old task is still
                current and whole.
            EngineClosedError: the engine has been closed.
            SwitchFailedError: loading failed after the old task was given up; no task is current.
        """
        with self._lock:
            if name == self._current:
                self._check_open()
                self.monitor.record(name)
                return self._module(name)
            module = self._hold(name, leaving=self._current)
            left, self._current = self._current, name
            if left is not None:
                self._release(left)
            return module

    def deactivate(self) -> None:
        """Leave the current task, if any; its pages stay until their slots are wanted."""
        with self._lock:
            self._leave_current()

    def pin(self, name: str) -> None:
        """Load a task and keep its pages until `unpin`. Errors are those of `task`."""
        with self._lock:
            self._hold(name)
            self._tasks[name].pins += 1

    def unpin(self, name: str) -> None:
        """Undo one `pin`.

        Raises:
            UnknownTaskError: the bundle has no such task.
            TaskNotActiveError: the task isn't pinned.
        """
        with self._lock:
            self.bundle.task(name)
            if not self._tasks[name].pins:
                raise TaskNotActiveError(f"task {name!r} is not pinned")
            self._tasks[name].pins -= 1
            self._release(name)

    def evict(self) -> int:
        """Drop all pages that no task in use needs; how many went."""
        with self._lock:
            return self._residency.evict_unlocked()

    def verify(self) -> list[int]:
        """Indices of resident pages whose bytes no longer match their BLAKE3; empty if all is well."""
        with self._lock:
            return self._residency.damaged()

    def tokenizer(self) -> Any:
        """The bundle's tokenizer; read from its files when asked for.

        Raises:
            BundleFormatError: transformers can't read it.
        """
        return architecture.tokenizer(self.bundle)

    def report(self) -> EngineReport:
        """The engine's state."""
        with self._lock:
            blocks = self._residency.blocks
            return EngineReport(
                budget=self._memory.budget,
                memory=self._memory.use,
                slots=blocks.slots,
                resident_pages=len(blocks.resident()),
                locked_pages=len(blocks.locked()),
                active=tuple(name for name, task in self._tasks.items() if task.gate.holders),
                direct_io=self._direct,
                kernel=kernels.isa(),
                bytes_read=self._reads.bytes,
                switches=tuple(self._switches),
            )

    def close(self) -> None:
        """Finish loads in flight and close the bundle's files; modules must not be called any more."""
        with self._lock:
            if not self._closed:
                self._leave_current()
                self._closed = True
                self._residency.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def blocks(self) -> BlockManager:
        """The page table and its policy, for inspection and tests."""
        return self._residency.blocks

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosedError("the engine is closed; open the bundle again")

    def _module(self, name: str) -> nn.Module:
        task = self._tasks[name]
        if task.module is None:
            values = {**self._resident, **task.private}
            arena, table = self._memory.arena, self._page_table
            task.module = task_module.build(
                self.bundle, name, self._config, values, arena, table, task.gate, task.low_rank
            )
        return task.module

    def _hold(self, name: str, leaving: str | None = None) -> nn.Module:
        self._check_open()
        self.bundle.task(name)
        module = self._module(name)
        task = self._tasks[name]
        start = time.perf_counter()
        release = np.zeros(0, np.int64) if leaving is None else self._tasks[leaving].pages
        stats = self._residency.bring_in(name, task.pages, release, self._leave_current)
        task.gate.hold()
        self._note(name, stats, time.perf_counter() - start)
        return module

    def _release(self, name: str) -> None:
        task = self._tasks[name]
        try:
            task.gate.release()
        finally:
            self._residency.let_go(task.pages)

    def _leave_current(self) -> None:
        if self._current is not None:
            name, self._current = self._current, None
            self._release(name)

    def _note(self, name: str, stats: LoadStats, seconds: float) -> None:
        before = self.monitor.current
        self.monitor.record(name)
        pages = stats.bytes // self.bundle.page_bytes
        self._switches.append(SwitchReport(before, name, pages, stats.bytes, stats.reads, stats.seconds, seconds))


def _task(bundle: Bundle, name: str) -> _Task:
    private, low_rank = read_parameters(bundle, private_file(name)), read_adapter(bundle, name)
    return _Task(bundle.pages_of(name), private, low_rank, TaskGate(name))


def _memory(bundle: Bundle, config: EngineConfig) -> MemoryController:
    return MemoryController(
        config.budget,
        pages=len(bundle.pages),
        page_bytes=bundle.page_bytes,
        least_pages=min(len(bundle.pages_of(name)) for name in bundle.tasks),
        fixed=footprint(bundle),
    )

"""What an open engine tells about itself: nothing here loads a page."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from weightpager.answers.kinds import kind_of
from weightpager.answers.model import CacheSize, ModelLimits
from weightpager.bundle import Bundle, TaskEntry
from weightpager.config import EngineConfig, format_size
from weightpager.engine.input_readers import InputReaders
from weightpager.engine.open_bundle import OpenBundle, in_use
from weightpager.engine.open_task import OpenTask
from weightpager.engine.prefetching import ForecastReport, Forecasts, Prefetching
from weightpager.engine.report import EngineReport, ResidencyMap, SwitchLog, SwitchReport
from weightpager.errors import BudgetError, EngineClosedError, TaskTooLargeError, of_bundle, shown
from weightpager.machine.packages import needing_torch
from weightpager.page_dtype import ENCODINGS
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer, open_tokenizer
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.pages import ABSENT
from weightpager.runtime.prediction.task_monitor import TaskMonitor


class EngineView:
    """The part of `Engine` that only looks on."""

    def __new__(cls, bundle: Any = None, *_: Any, **__: Any) -> EngineView:
        if isinstance(bundle, (str, os.PathLike)):
            where = shown(str(bundle))
            how = f"weightpager.load({where}, budget=...) opens an engine"
            raise TypeError(f"{how}; Engine takes an open Bundle and an EngineConfig")
        return super().__new__(cls)

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor, config: EngineConfig) -> None:
        self.monitor = monitor
        self._open = opened
        self._residency, self._memory = opened.residency, opened.memory
        self._real_time = frozenset(config.real_time)
        self._process = os.getpid()
        self._closed = False
        self._current: str | None = None
        self._switches = SwitchLog(opened, monitor)
        self._forecasts = Forecasts(opened, monitor)
        self._prefetching = Prefetching(opened, monitor, config.prefetch, self._real_time)
        self._readers = InputReaders(opened.backend)

    def __repr__(self) -> str:
        told = [f"{len(self.tasks)} tasks", format_size(self._memory.budget), self._open.backend.name]
        if self._closed:
            told.append("closed")
        elif self._current is not None:
            told.append(f"{self._current!r} is current")
        return f"<Engine {str(self.bundle.path)!r}: {', '.join(told)}>"

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was when it was opened or last reloaded."""
        return self._open.bundle

    @property
    def tasks(self) -> Mapping[str, TaskEntry]:
        """The bundle's tasks by name, each with its kind, its classes and what else the bundle states of it.

        Examples:
            >>> {name: task.kind for name, task in engine.tasks.items()}
            {'spam': 'text-classification', 'topic': 'text-classification'}
            >>> engine.tasks["spam"].classes
            ['ham', 'spam']
        """
        return self.bundle.tasks

    @property
    def blocks(self) -> BlockManager:
        """The page table and its policy, for inspection and tests. Don't change it: only the engine holds its lock."""
        return self._residency.blocks

    def dtype(self, name: str) -> str:
        """What a task computes in: ``"float32"`` or ``"bfloat16"``.

        Raises:
            UnknownTaskError: the bundle has no such task.
        """
        return self._open.dtype(name)

    def check_fits(self, name: str) -> None:
        """Check that the budget ever holds a task, beside real-time ones. Loads nothing.

        Raises:
            UnknownTaskError: the bundle has no such task.
            TaskTooLargeError: it never does; says the smallest budget that would do.
        """
        self._check_process()
        self._open.check_fits(name, self._real_time)

    @property
    def limits(self) -> ModelLimits:
        """How much the bundle's model can read, and the memory that this takes, by the widest numbers of any task."""
        return self._open.backend.limits(self.bundle, self._widest())

    def cache_size(self) -> CacheSize:
        """What keys and values take of the kind of tasks that keeps most, by the widest numbers of any task.

        A task of each kind that writes is built; nothing is loaded.

        Raises:
            BundleFormatError: its parameters don't make up the task, or it would keep more than any model does.
        """
        writers = {task.kind: name for name, task in self.bundle.tasks.items() if kind_of(task.kind).writes}
        with of_bundle(self.bundle.path):
            built = [self._open.task_and_module(name)[1] for name in writers.values()]
        sizes = [self._open.backend.cache_size(task, self._widest()) for task in built]
        return max(sizes, key=lambda size: size.bytes(1, 1), default=CacheSize())

    def reader(self) -> Tokenizer | ImageReader:
        """A new reader of the tasks' inputs, texts or images, for one thread at a time.

        Raises:
            BundleFormatError: they can't be read.
            ConfigError: the tasks read images, and Pillow isn't installed, or native code can't scale images as the
                model needs it.
        """
        return self._readers.new(self.bundle)

    def tokenizer(self) -> Any:
        """A new tokenizer of a bundle whose tasks read texts, which gives what its tasks take when they are called.

        The native backend gives a `Tokenizer`, whose calls give numpy's arrays by name; it needs no transformers. The
        backend of torch gives transformers' tokenizer. Each is for one thread at a time.

        Raises:
            BundleFormatError: it can't be read, or the tasks read images.

        Examples:
            >>> inputs = engine.tokenizer()("You won a prize")
            >>> with engine.task("spam") as task:
            ...     logits = task(**inputs)["logits"]
        """
        if self._open.backend.name == "native":
            reader = None if self.bundle.takes_images else self.reader()
            return reader if isinstance(reader, Tokenizer) else open_tokenizer(self.bundle)  # which says what is wrong
        from weightpager.backends.torch import architecture

        return architecture.tokenizer(self.bundle)

    def image_processor(self) -> Any:
        """Transformers' image processor of a bundle whose tasks read images, read from its files when asked for.

        Raises:
            BundleFormatError: transformers can't read it, or the tasks read texts.
            ConfigError: Pillow or transformers isn't installed.
        """
        with needing_torch("for transformers' own image processor"):
            from weightpager.backends.torch import architecture

        return architecture.image_reader(self.bundle).processor

    def verify(self) -> list[int]:
        """Compare the pages in memory with their BLAKE3 hashes; `repair` mends them.

        Returns:
            Numbers of the pages that don't match; empty if all is well.
        """
        self._check_process()
        return self._open.page_check.damaged()

    def report(self) -> EngineReport:
        """The engine's state: memory, pages, what has been read, and up to 1000 latest switches."""
        self._check_process()
        blocks = self.blocks
        return EngineReport(
            budget=self._memory.budget,
            memory=self._memory.use,
            available_memory=self._open.watch.available(),
            slots=blocks.slots,
            resident_pages=len(blocks.resident()),
            locked_pages=len(blocks.locked()),
            active=tuple(name for name, task in self._tasks.items() if task.gate.holders),
            direct_io=self._open.direct,
            backend=self._open.backend.name,
            kernel=self._open.backend.kernel,
            bytes_read=self._open.reads.bytes + self._open.row_reads.bytes,
            working_set_pages=self._switches.working_set(),
            reloaded_pages=blocks.reloads,
            switches=self._switches.latest(),
            prefetch=self._prefetching.report(),
            rows=self._open.rows.report,
        )

    @property
    def last_switch(self) -> SwitchReport | None:
        """The latest of the report's switches; None before the first."""
        return self._switches.last

    def residency(self) -> ResidencyMap:
        """Which pages are in the arena now, by layer and task. Loads nothing."""
        self._check_process()
        needs = {name: self.blocks.needs(task.number) for name, task in self._tasks.items()}
        layers = self._open.layers
        return ResidencyMap(layers, self.blocks.page_table[: len(layers)] != ABSENT, needs)

    @property
    def resident_tasks(self) -> frozenset[str]:
        """Tasks that could be entered now without loading anything."""
        self._check_process()
        return frozenset(name for name, task in self._tasks.items() if self.blocks.is_resident(task.number))

    def forecast(self) -> ForecastReport | None:
        """What probably comes next by what has been learnt, whether anything is prefetched or not. Loads nothing.

        The history is caught up with when this is called. A planner isn't asked. None before the first request.
        """
        return self._forecasts.now()

    @property
    def _tasks(self) -> Mapping[str, OpenTask]:
        return self._open.tasks

    @property
    def _forked(self) -> bool:
        """Whether this process isn't the one that opened the engine."""
        return os.getpid() != self._process

    @contextmanager
    def _explained(self, leaving: str | None = None) -> Iterator[None]:
        """Complete errors of loading: with the bundle's path, and with who uses the tasks that leave no room.

        Args:
            leaving: the task that is left for the one that is loaded.
        """
        try:
            with of_bundle(self.bundle.path):
                yield
        except TaskTooLargeError:
            raise
        except BudgetError as error:
            users = in_use(self._tasks, self._real_time, self._current, leaving)
            raise BudgetError(f"{error} {users}".rstrip(), error.smallest) from error

    def _check_process(self) -> None:
        if self._forked:
            raise EngineClosedError("the engine belongs to the process that this one was forked from; open the bundle")

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise EngineClosedError("the engine is closed; open the bundle again")

    def _widest(self) -> int:
        """Bytes of a number that tasks compute with."""
        return max(ENCODINGS[self.dtype(name)].bits // 8 for name in self.bundle.tasks)

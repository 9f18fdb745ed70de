"""`Engine`: a bundle opened under a memory budget."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.batches import Bounds
from weightpager.answers.encoding import begin
from weightpager.answers.kept import Kept
from weightpager.answers.kinds import Prediction
from weightpager.answers.model import CacheSize, FindFeatures, ModelLimits, TaskModel
from weightpager.answers.predict import (
    Input,
    Wanted,
    check_writes,
    checked,
    checked_texts,
    embed,
    predict,
    works_of,
)
from weightpager.answers.query import Run, StreamedQuery, compiled_anew
from weightpager.answers.token_reader import Conversation, PicturePrompt
from weightpager.bundle import Bundle, TaskEntry
from weightpager.config import EngineConfig, format_size, parse_size
from weightpager.engine import input_readers
from weightpager.engine.bundle_change import BundleChange
from weightpager.engine.forecasts import ForecastReport, Forecasts
from weightpager.engine.input_readers import InputReaders
from weightpager.engine.open_bundle import OpenBundle
from weightpager.engine.prefetching import EnginePrefetching, Prefetching
from weightpager.engine.report import EngineReport, ResidencyMap, SwitchReport, report_of, residency_of
from weightpager.engine.task_holds import TaskHolds
from weightpager.errors import ConfigError, EngineClosedError, of_bundle, shown
from weightpager.interrupts import acquired, in_process, uninterrupted
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.picture_reader import PictureSource
from weightpager.readers.tokenizer import Tokenizer
from weightpager.runtime.bracket import Closing, bracket
from weightpager.runtime.memory.page_arena import ArenaSource
from weightpager.runtime.paging.state import SwitchRequest
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.shares import Holding, Wish
from weightpager.runtime.prediction.history import HistoryFile
from weightpager.runtime.prediction.planner import Planner
from weightpager.runtime.prediction.task_monitor import TaskMonitor
from weightpager.store import LocalStore, PageStore


class Engine(Closing):
    """Runs a bundle's tasks inside one memory budget.

    A task's module is built once and never changes: a switch changes which pages are in the arena. Outputs are
    bit-equal to those of a freshly opened engine, whatever was run before (same machine, threads and input shape).

    Safe to use from several threads. One switch loads at a time; a task that is resident is entered at once, whatever
    switch is going on. At the end of a ``with`` block an engine is closed.

    Its properties are what is known of it. Its methods make something new, do work, or take a name.

    A process that was forked must open an engine of its own: what needs memory or storage raises `EngineClosedError`
    there. After `close`, what runs or loads tasks does.

    Attributes:
        monitor: a `TaskMonitor`, which knows which task ran when; ``monitor.trace()`` gives the rows of a trace file.
    """

    def __new__(cls, bundle: Any = None, *_: Any, **__: Any) -> Engine:
        if isinstance(bundle, (str, os.PathLike)):
            where = shown(str(bundle))
            how = f"weightpager.load({where}, budget=...) opens an engine"
            raise TypeError(f"{how}; Engine takes an open Bundle and an EngineConfig")
        return super().__new__(cls)

    @uninterrupted
    def __init__(
        self,
        bundle: Bundle,
        config: EngineConfig,
        open_store: Callable[[Bundle], PageStore] = LocalStore,
        staging: ArenaSource | None = None,
        readers: InputReaders | None = None,
    ) -> None:
        """Open a bundle; `from_pretrained` is the usual way.

        Args:
            bundle: an open bundle.
            config: budget, devices, and tasks that never leave memory.
            open_store: opens where a bundle's pages come from, now and when it is reloaded; its own files unless
                stated. The engine checks each page, and closes the store.
            staging: how pages reach the arena; as the configured device wants it if None.
            readers: what reads graphs and inputs, and is there when the engine is closed; its own if None.

        Raises:
            TypeError: the bundle isn't open, but a path.
            ConfigError: the device isn't there.
            BudgetError: not even the smallest task fits into the budget, or not all real-time tasks together.
            BundleError, StoreError: a file is damaged or can't be opened.
        """
        for name in config.real_time:
            bundle.task(name)
        with of_bundle(bundle.path):
            opened = OpenBundle(bundle, config, open_store, staging, None if readers is None else readers.backend)
        self._process = os.getpid()
        weakref.finalize(self, in_process, self._process, opened.residency.close)
        self.monitor = TaskMonitor(file=None if config.history is None else HistoryFile(config.history))
        weakref.finalize(self, in_process, self._process, self.monitor.close)
        self._open, self._residency, self._memory = opened, opened.residency, opened.memory
        self._readers = readers or InputReaders(opened.backend)
        self._close_readers = _nothing if readers else self._readers.close
        weakref.finalize(self, in_process, self._process, self._close_readers)
        self._forecasts = Forecasts(opened, self.monitor)
        self._prefetching: EnginePrefetching | None = None
        self._real_time = frozenset(config.real_time)
        self._holds = TaskHolds(opened, self.monitor, self._real_time, warns=not config.in_share)
        self._closed = False
        self._closing = threading.Lock()  # never kept while storage works
        self._changing = threading.Lock()  # budget or bundle
        self._predicting = {name: threading.Lock() for name in self._real_time}  # one prediction of each at a time
        try:
            for name in sorted(self._real_time):
                self._holds.hold(name, is_visit=False)  # and never release
        except BaseException:
            self.close()
            raise
        if config.prefetch:
            self._prefetch_by(partial(Prefetching, monitor=self.monitor, wanted=config.prefetch, held=self._real_time))

    def _prefetch_by(self, prefetching: Callable[[OpenBundle], EnginePrefetching]) -> None:
        """Have pages prefetched."""
        self._prefetching = prefetching(self._open)
        weakref.finalize(self, in_process, self._process, self._prefetching.close)
        self._holds.prefetching = self._prefetching

    @classmethod
    def from_pretrained(
        cls,
        bundle: str | Path,
        *,
        budget: str | int | None = None,
        device: str = "cpu",
        dtype: str = "auto",
        io_threads: int = 8,
        kv_reserve: str | int = 0,
        prefix_cache: str | int = 0,
        rows: str | int | None = None,
        real_time: Sequence[str] = (),
        read_timeout: float = 30.0,
        prefetch: bool | Planner = False,
        history: str | Path | None = None,
        backend: str = "auto",
    ) -> Engine:
        """Open a bundle directory under a budget. Of its pages only those of real-time tasks are loaded now.

        Args:
            bundle: directory that ``weightpager compile`` wrote.
            budget: memory for weights, such as ``"64MiB"``, or bytes; None for all that the bundle holds.
            device: where the arena lives and tasks run: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``; inputs must be there
                too.
            dtype: what tasks compute in: ``"auto"`` as the bundle's parameters are, ``"bfloat16"`` for less memory, and
                for speed where the CPU multiplies bfloat16; pages keep their own.
            io_threads: reads in flight while pages are loaded, 1 to 64.
            kv_reserve: part of the budget that is left to KV caches, such as ``"16MiB"``, or bytes.
            prefix_cache: part of the budget for keys and values of prompts' beginnings, such as ``"64MiB"``, or bytes.
                A prompt that begins as an earlier one of its task isn't read again so far, over any number of switches.
            rows: part of the budget for rows of embedding tables that come on demand, such as ``"4MiB"``, or bytes;
                None for what all pages leave, and never less than 1/32 of the rows.
            real_time: tasks that are loaded now and never leave memory.
            read_timeout: seconds without any page after which a load fails.
            prefetch: whether to prefetch, between switches, what the next task probably needs, as far as the budget has
                room. A `Planner`, a function, tells the next task better than the past does: it gets the visits so far,
                oldest first, and gives a weight to each task that may come next.
            history: file that keeps which task ran when, so that habits needn't be learnt again after a restart; it
                is made if there is none, and holds task names and times only.
            backend: what runs tasks. ``"torch"``: transformers' module, as a torch module. ``"native"``: native code
                over the graph in the bundle, numpy in and out, on the CPU; the process needs no torch. ``"auto"``: what
                ``WEIGHTPAGER_BACKEND`` names; else native code where it can run the tasks, and torch otherwise.

        Raises:
            ConfigError: an argument is wrong, or the device isn't there.
            UnknownTaskError: the bundle has no task that ``real_time`` names.
            BundleError, StoreError: the bundle can't be used.
            BudgetError: not even the smallest task fits, or not all real-time tasks; names the smallest budget that
                would do.
        """
        config = EngineConfig.stated(
            budget=budget,
            device=device,
            dtype=dtype,
            io_threads=io_threads,
            kv_reserve=kv_reserve,
            prefix_cache=prefix_cache,
            rows=rows,
            real_time=real_time,
            read_timeout=read_timeout,
            prefetch=prefetch,
            history=history,
            backend=backend,
        )
        # The tokenizer, and what the bundle becomes, are read later, when the process may have gone elsewhere.
        return cls(Bundle.open(Path(bundle).absolute()), config)

    def __repr__(self) -> str:
        told = [f"{len(self.tasks)} tasks", format_size(self._memory.budget), self._open.backend.name]
        if self._closed:
            told.append("closed")
        elif self._holds.current is not None:
            told.append(f"{self._holds.current!r} is current")
        return f"<Engine {str(self.bundle.path)!r}: {', '.join(told)}>"

    @bracket
    def task(self, name: str, *, wait: bool = True, timeout: float | None = None) -> Iterator[Any]:
        """A task to be called, usable inside the ``with`` block. Its pages stay until the block ends.

        The native backend gives a `NativeTask`, which takes numpy's arrays by name and gives them by name. The backend
        of torch gives transformers' module, tensors in and out.

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
            BudgetError: its pages don't fit beside those in use; a `TaskTooLargeError` if they never will.
            BusyError: the timeout passed during another switch.
            ConfigError: the timeout is no number of seconds.
            StoreError, PageCorruptError: a page could not be loaded; all other tasks are as they were.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        module = self._holds.hold(name, wait=wait, timeout=timeout)
        try:
            yield module
        finally:
            self._holds.release(name)

    @uninterrupted
    def activate(self, name: str, *, wait: bool = True, timeout: float | None = None) -> Any:
        """Make a task the current one until the next `activate`.

        The task that was current before is left only when the new one is in place. If both don't fit together, it is
        given up after as much of the new one as possible has been loaded. With ``wait=False`` it is left at once, and
        the module runs while its pages are loaded.

        Activations, predictions and reloads of several threads follow one another, whatever would fit together. The
        timeout bounds this wait, too.

        Args:
            name: of the task.
            wait: whether to return only when all pages are there, as of `task`.
            timeout: seconds to wait for other threads, as of `task`.

        Returns:
            What is called to run the task, as `task` gives it.

        Raises:
            UnknownTaskError, BundleFormatError, BudgetError, BusyError, StoreError, PageCorruptError: the previous task
                is still current and whole.
            EngineClosedError: the engine has been closed.
            SwitchFailedError: loading failed after the previous task was given up; no task is current.
        """
        self._check_open()
        return self._holds.activate(name, wait=wait, timeout=timeout)

    def module(self, name: str) -> Any:
        """What `task` and `activate` give, built now if it wasn't yet, so that its first use takes no longer.

        No page is loaded. It runs while the task is active, and raises `TaskNotActiveError` otherwise.

        Raises:
            UnknownTaskError: the bundle has no such task.
            BundleFormatError: its parameters don't make up the module.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        return self._open.task_and_module(name)[1]

    def model(self, name: str) -> TaskModel:
        """A task's model for code that doesn't care about the backend: numpy's arrays in and out.

        It is built, runs and raises as `module` says.
        """
        self._check_open()
        return self._open.model(name)

    def kept(self, name: str) -> Kept:
        """What a batch of a task may take over of earlier ones: `features`, and prompts' beginnings."""
        return self._open.kept(name)

    def features(self, name: str) -> FindFeatures:
        """What gives pictures' features to a task's model while the task is active: kept ones, or what it computes.

        They are kept inside the budget, the least recently used leave first, and `reload` and `repair` drop them. Tasks
        share them where the bundle says that they have the same picture tower.
        """
        return self._open.features(name)

    def predict(
        self,
        name: str,
        inputs: Iterable[Input],
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
        batch_size: int = 1,
    ) -> list[Prediction]:
        """A task's answers to texts or images.

        The task is current meanwhile and afterwards: predictions and activations of several threads follow one another.
        A real-time task doesn't become current. Its predictions follow one another, and wait neither for other tasks'
        predictions nor for loads. Errors are those of `activate`, too.

        Args:
            name: of the task.
            inputs: texts, or images. An image is a path, the content of an image file (bytes), or a frame: an array
                of uint8 [height, width, 3] in RGB. To a task whose prompts are conversations, each input is what a user
                says, or a list of messages with a ``role`` and a ``content``.
            max_new_tokens: of a continuation; None for as many as the task states, or else 32, and as the model has
                room for.
            temperature: how freely a continuation's tokens are drawn, 0 to 2; 0 takes the likeliest, as None does
                unless ``top_p`` is below 1: then it is 1.
            top_p: draw from the likeliest tokens that together have this probability.
            seed: draws the same tokens again; such prompts run alone.
            stop: a text or texts that end a continuation, and are cut off.
            batch_size: inputs of similar length that are read together, at most, as the server does it; fewer where
                they are long. With 1 an answer depends on its input alone, bit for bit. With more, others change its
                last bits.

        Returns:
            An answer to each input, in their order.

        Raises:
            ConfigError: an input is nothing that the task reads, or there is one in place of several; a text has no
                tokens, or with the continuation that is asked for more than the model can read; the model's chat
                template doesn't take it; an option is no number, or out of its range.
            BundleFormatError: the bundle's files can't read its inputs.
            ImageError: an image can't be used; its path or its number is named.

        Examples:
            >>> answers = engine.predict("spam", ["You won a prize", "See you at noon"], batch_size=8)
            >>> [answer.label in engine.tasks["spam"].classes for answer in answers]
            [True, True]
            >>> (answer,) = writer.predict("notes", ["The meeting"], max_new_tokens=8, temperature=0.7, seed=1)
            >>> answer.tokens <= 8
            True
        """
        self._check_open()
        wanted, bounds = Wanted.of(max_new_tokens, temperature, top_p, seed, stop), Bounds(batch_size)
        # What is refused neither waits nor switches.
        asked = checked(self.bundle.task(name), inputs, pictures=self.bundle.pictures is not None)
        with of_bundle(self.bundle.path), self._turn_to_predict(name):
            entry, reader = self.bundle.task(name), self._readers.own(self.bundle)  # a reload may have changed them
            template = self._readers.template(self.bundle, entry)
            return predict(
                self.model(name),
                reader,
                entry,
                asked,
                wanted=wanted,
                bounds=bounds,
                template=template,
                kept=self.kept(name),
            )

    def generate(
        self,
        name: str,
        prompt: str | Conversation,
        images: Sequence[PictureSource] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
    ) -> Prediction:
        """A prompt's continuation, as of `predict`, with pictures among its words.

        What the picture tower makes of a picture is kept for other questions about it, whatever task they ask. Errors
        are those of `predict`, too.

        Args:
            name: of a task that generates text.
            prompt: a text; to a task whose prompts are conversations, what a user says, or a list of messages. It has
                the model's placeholder (``<image>``, say) where each picture stands, or none: then they stand in front.
            images: files' paths or data URLs, contents of files (bytes), frames (arrays of uint8 [height, width, 3] in
                RGB) or Pillow's images.
            max_new_tokens: as of `predict`, likewise all that follow.
            temperature: how freely tokens are drawn.
            top_p: the likeliest tokens that they are drawn from.
            seed: draws the same tokens again.
            stop: texts that end the continuation.

        Raises:
            ConfigError: the task doesn't generate text, or the bundle's model reads no pictures, or Pillow isn't
                installed; or as of `predict`.
            ImageError: a picture can't be used, or the prompt has places for more or fewer.

        Examples:
            >>> answer = writer.generate("notes", "The meeting", max_new_tokens=8)
            >>> answer.completion == writer.predict("notes", ["The meeting"], max_new_tokens=8)[0].completion
            True
        """
        self._check_open()
        check_writes(self.bundle.task(name))
        (answer,) = self.predict(
            name,
            [_with(images, prompt, self.bundle)],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
        )
        return answer

    def stream(
        self,
        name: str,
        prompt: str | Conversation,
        images: Sequence[PictureSource] = (),
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
    ) -> Iterator[str]:
        """The pieces of a prompt's continuation, as soon as they may be shown; joined they are what `generate` answers.

        Between two tokens other calls have their turn, and may switch to other tasks. The next piece switches back, and
        goes on where the text was. Where torch runs a model that can't be paused, all pieces come at the end.
        The prompt is checked at once, and pictures are decoded; nothing is computed but for a piece that is asked for.
        Errors are those of `predict`, too.

        Args:
            name: of a task that generates text.
            prompt: a text; to a task whose prompts are conversations, what a user says, or a list of messages.
            images: pictures that stand in the prompt, as of `generate`.
            max_new_tokens: as of `predict`, likewise all that follow.
            temperature: how freely tokens are drawn.
            top_p: the likeliest tokens that they are drawn from.
            seed: draws the same tokens again.
            stop: texts that end the continuation.

        Raises:
            ConfigError: the task doesn't generate text, or as of `predict`.
            BusyError: a reload has replaced the task meanwhile.

        Examples:
            >>> pieces = list(writer.stream("notes", "The meeting", max_new_tokens=8))
            >>> "".join(pieces) == writer.predict("notes", ["The meeting"], max_new_tokens=8)[0].label
            True
        """
        self._check_open()
        entry, wanted = self.bundle.task(name), Wanted.of(max_new_tokens, temperature, top_p, seed, stop)
        check_writes(entry)
        asked = checked(entry, [_with(images, prompt, self.bundle)])
        with of_bundle(self.bundle.path):
            model, tokenizer = self.model(name), self._readers.new(self.bundle)  # which threads take in turns
            (work,) = works_of(model, tokenizer, entry, asked, wanted, self._readers.template(self.bundle, entry))
        query = StreamedQuery(work)
        run = begin(entry.kind, model, tokenizer, [query], self.kept(name))
        return self._pieces(name, query, model, run)

    def embed(self, name: str, texts: Iterable[str], *, batch_size: int = 1) -> npt.NDArray[np.float32]:
        """Vectors of texts, [texts, width]: the last hidden state below the task's head, averaged over tokens.

        Any task on texts has them, and each task its own. They aren't scaled to length 1. The task becomes current as
        of `predict`, and errors are those of `predict`, too.

        Args:
            name: of the task.
            texts: never cut.
            batch_size: as of `predict`.

        Raises:
            ConfigError: a text is none, there is one in place of several, or one has no tokens or more than the model
                can read; the task reads images.

        Examples:
            >>> vectors = engine.embed("topic", ["The match ends", "Markets rise"], batch_size=8)
            >>> vectors.shape[0], vectors.dtype
            (2, dtype('float32'))
        """
        self._check_open()
        bounds = Bounds(batch_size)
        listed = checked_texts(self.bundle.task(name), texts)
        with of_bundle(self.bundle.path), self._turn_to_predict(name):
            entry, tokenizer = self.bundle.task(name), self._readers.own(self.bundle)
            assert isinstance(tokenizer, Tokenizer)  # `checked_texts` has seen that no images are read
            return embed(self.model(name), tokenizer, entry, listed, bounds=bounds)

    @uninterrupted
    def deactivate(self) -> None:
        """Leave the current task, if any, so that others may have its room. Its pages stay until that is wanted."""
        self._check_process()
        with acquired(self._holds.activating):
            self._holds.leave_current()

    @uninterrupted
    def close(self) -> None:
        """Drop queued loads and all that was kept, finish loads in flight and close the bundle's files.

        Modules must not be called any more. Whoever waits for a load gets an `EngineClosedError`. In a process that was
        forked nothing happens: threads and files are its parent's.

        Raises:
            StoreError: the store couldn't be closed; all else is.
        """
        if os.getpid() != self._process:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
        with ExitStack() as closing:  # all of it, also where the store can't be closed; from the last to the first
            closing.callback(self.deactivate)
            closing.callback(self.monitor.close)
            closing.callback(self._close_readers)
            closing.callback(self._memory.forget)
            closing.callback(self._residency.close)
            if self._prefetching is not None:
                closing.callback(self._prefetching.close)

    def pin(self, name: str) -> None:
        """Load a task and keep its pages until `unpin`, so that switching to it never waits for storage.

        That is no visit. As many calls of `unpin` undo it as there were of this. Errors are those of `task`.
        """
        self._check_open()
        self._holds.pin(name)

    def check_unpinned(self, name: str) -> None:
        """Check that a task can leave the bundle: that it is neither pinned nor held for real time.

        Raises:
            BusyError: it is.
        """
        self._holds.check_unpinned(name)

    def unpin(self, name: str) -> None:
        """Undo one `pin`.

        Raises:
            UnknownTaskError: the bundle has no such task.
            TaskNotActiveError: the task isn't pinned.
        """
        self._check_process()
        self._holds.unpin(name)

    @uninterrupted
    def prefetch(self, name: str) -> int:
        """Begin to load a task that comes soon, once no switch is going on. Returns at once.

        They go where no task in use has any. Whatever somebody waits for is read first, and a switch that must load
        takes back what hasn't begun; so does a task that is named later where both have no room. Nothing keeps the
        pages once they are there: `pin` does.

        Returns:
            How many pages were queued.

        Raises:
            UnknownTaskError: the bundle has no such task.
            BudgetError: its pages don't fit beside those in use; nothing has changed.
            BusyError: the task has just left the bundle.
            StoreTimeoutError: reads that hang have memory that is needed; what was named before may be taken back.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        number = self._open.task(name).number
        ask_uses = partial(self._holds.uses_after, number)
        with self._holds.explained():
            return self._residency.prefetch(SwitchRequest(number, name, ask_uses=ask_uses))

    @uninterrupted
    def evict(self) -> int:
        """Drop all pages that no task in use needs, so that a later switch reads them again. Returns how many went."""
        self._check_process()
        return self._residency.evict_unused()

    @uninterrupted
    def set_budget(self, budget: str | int) -> None:
        """Use more or less memory from now on. The arena stays where it is, and so do the modules.

        Pages of tasks that aren't in use go if they must, and their memory goes back to the machine. More than the
        whole bundle needs isn't used. More than the machine has is said in the log.

        Args:
            budget: memory for weights, such as ``"64MiB"``, or bytes.

        Raises:
            ConfigError: it is no size.
            BudgetError: the tasks in use need more, or not even the smallest task would fit; nothing has changed.
            StoreTimeoutError: reads that hang have memory that must go; nothing has changed.
            EngineClosedError: the engine has been closed.
        """
        self.set_share(parse_size(budget, "budget"))
        self._open.check_memory()

    @uninterrupted
    def set_share(self, share: int, uses: Mapping[str, float] | None = None) -> None:
        """As `set_budget`, where the budget is a part of one that several bundles have in common.

        Args:
            share: bytes.
            uses: expected of each task by name: pages that will be used least go first. None goes by recency.
        """
        self._check_open()
        with acquired(self._changing):
            self._open.resize(share, uses)
            if self._prefetching is not None:
                self._prefetching.renew()

    def holding(self, uses: Mapping[str, float]) -> Holding:
        """What of its budget other bundles might have, as `Models` asks; ``uses`` are expected of each task by name."""
        return self._open.holding(uses)

    def wanted(self, uses: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """Expected uses of the pages that it lacks, descending, by those of each task by name."""
        return self._open.wanted(uses)

    def wish(self, name: str) -> Wish:
        """What budget a task wants, and the least that it can do with, beside the tasks in use.

        Raises:
            UnknownTaskError: the bundle has no such task.
        """
        return self._open.wish(name)

    def repair(self) -> list[int]:
        """Reload those pages in place that `verify` finds damaged. Returns their numbers.

        A forward that runs meanwhile may have read the damage; one that starts later reads what is right.

        Raises:
            StoreError, PageCorruptError: storage doesn't have a page as it should be.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        repaired: list[int] | None = None
        try:
            repaired = self._open.page_check.repair()
        finally:
            if repaired != []:  # also where it raised: some pages may have been mended, others not
                self._memory.forget()  # what was computed with the damage
        return repaired

    @uninterrupted
    def reload(self) -> BundleChange:
        """Take over what has become of the bundle since: tasks that were added, removed, or compiled anew.

        Other tasks go on, also while this runs; their pages are known by content, wherever they lie now. Modules of
        tasks that left or changed can't be entered any more. A budget that wasn't stated grows with the bundle.

        Returns:
            What has changed.

        Raises:
            BundleError, StoreError: the bundle is damaged, of another model, or has more new pages than there is room
                for beside those in use; nothing has changed.
            BusyError: a task that was removed or changed is in use; nothing has changed.
            BudgetError: the bundle's parameters leave too little room for the tasks in use; nothing has changed.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        with acquired(self._holds.activating), acquired(self._changing):
            change = self._open.reload()
            if self._prefetching is not None:
                self._prefetching.renew()
            return change

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was when it was opened or last reloaded."""
        return self._open.bundle

    @property
    def budget(self) -> int:
        """Bytes for weights in memory, as stated or last set."""
        return self._memory.budget

    @property
    def current(self) -> str | None:
        """The task that was activated last; None once it has been left."""
        return self._holds.current

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
        return self._open.limits

    def cache_size(self) -> CacheSize:
        """What keys and values take of the task that keeps most, by the widest numbers of any task.

        Of tasks that write, one of each kind and of equal layers is built; nothing is loaded.

        Raises:
            BundleFormatError: its parameters don't make up the task, or it would keep more than any model does.
        """
        with of_bundle(self.bundle.path):
            return self._open.cache_size()

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
        return self._readers.tokenizer(self.bundle)

    def image_processor(self) -> Any:
        """Transformers' image processor of a bundle whose tasks read images, read from its files when asked for.

        Raises:
            BundleFormatError: transformers can't read it, or the tasks read texts.
            ConfigError: Pillow or transformers isn't installed.
        """
        return input_readers.image_processor(self.bundle)

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
        return report_of(self._open, self._holds.switches, self._prefetching)

    @property
    def last_switch(self) -> SwitchReport | None:
        """The latest of the report's switches; None before the first."""
        return self._holds.switches.last

    def residency(self) -> ResidencyMap:
        """Which pages are in the arena now, by layer and task. Loads nothing."""
        self._check_process()
        return residency_of(self._open)

    @property
    def resident_tasks(self) -> frozenset[str]:
        """Tasks that could be entered now without loading anything."""
        self._check_process()
        return frozenset(name for name, task in self._open.tasks.items() if self.blocks.is_resident(task.number))

    def forecast(self) -> ForecastReport | None:
        """What probably comes next by what has been learnt, whether anything is prefetched or not. Loads nothing.

        The history is caught up with when this is called. A planner isn't asked. None before the first request.
        """
        return self._forecasts.now()

    def _pieces(self, name: str, query: StreamedQuery, model: TaskModel, run: Run) -> Iterator[str]:
        """A continuation token by token, each in a turn of its own: nothing is held while the caller has a piece."""
        again = False
        while not query.over:
            with of_bundle(self.bundle.path), self._turn_to_predict(name, again=again):
                if self.model(name) is not model:
                    raise compiled_anew(name)
                run.step(time.monotonic())  # one forward: the time is over by its end
            again = True
            yield from query.take()

    @bracket
    def _turn_to_predict(self, name: str, *, again: bool = False) -> Iterator[None]:
        """Keep a task active: a real-time one, which always has room, beside others, any other as the current one.

        Whoever goes on ``again`` makes no visit of its own, unless others were current meanwhile.
        """
        if name in self._real_time:  # which is held for good
            with acquired(self._predicting[name]), nullcontext() if again else self.task(name):
                yield
        else:
            with acquired(self._holds.activating):
                if not again or name != self._holds.current:
                    self.activate(name)
                yield

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise EngineClosedError("the engine belongs to the process that this one was forked from; open the bundle")

    def _check_open(self) -> None:
        self._check_process()
        if self._closed:
            raise EngineClosedError("the engine is closed; open the bundle again")


def _with(images: Sequence[PictureSource], prompt: str | Conversation, bundle: Bundle) -> Input:
    """A prompt with its pictures.

    Raises:
        ConfigError: there are some, and the bundle's model reads none.
    """
    if isinstance(images, (list, tuple)) and not images:
        return prompt
    if bundle.pictures is None:
        raise ConfigError(f"images: expected none, since the bundle's model reads no pictures, found {shown(images)}")
    return PicturePrompt(prompt, images)


load = Engine.from_pretrained
"""Open a bundle under a budget: `Engine.from_pretrained` in one word.

Examples:
    >>> import weightpager as wp
    >>> engine = wp.load("assistant.bundle", budget="4MiB")
    >>> engine
    <Engine '...assistant.bundle': 2 tasks, 4.0 MiB, native>
    >>> writer = wp.load("writer.bundle")  # whose tasks generate text
"""


def engine_in_share(
    bundle: Bundle,
    config: EngineConfig,
    readers: InputReaders,
    prefetching: Callable[[OpenBundle], EnginePrefetching] | None,
) -> Engine:
    """An engine of one of several bundles that share a budget, and a prefetcher if there is one. Errors are its own."""
    engine = Engine(bundle, replace(config, in_share=True), readers=readers)
    if prefetching is not None:
        engine._prefetch_by(prefetching)
    return engine


def _nothing() -> None:
    """Leave readers open that others use."""

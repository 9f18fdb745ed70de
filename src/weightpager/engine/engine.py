"""`Engine`: a bundle opened under a memory budget."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.batches import Bounds
from weightpager.answers.encoding import begin
from weightpager.answers.kinds.kind import Prediction
from weightpager.answers.model import TaskModel
from weightpager.answers.predict import (
    Conversation,
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
from weightpager.bundle import Bundle, TaskEntry
from weightpager.config import EngineConfig, parse_size, stated_size
from weightpager.engine.maintenance import EngineMaintenance
from weightpager.engine.open_bundle import OpenBundle
from weightpager.errors import BusyError, ConfigError, of_bundle
from weightpager.interrupts import acquired, uninterrupted
from weightpager.readers.tokenizer import Tokenizer
from weightpager.runtime.bracket import bracket
from weightpager.runtime.memory.page_arena import ArenaSource
from weightpager.runtime.paging.state import Deadline
from weightpager.runtime.prediction.history import HistoryFile
from weightpager.runtime.prediction.planner import Planner
from weightpager.runtime.prediction.task_monitor import TaskMonitor
from weightpager.store import LocalStore, PageStore

if TYPE_CHECKING:
    from weightpager.readers.chat_template import ChatTemplate


class Engine(EngineMaintenance):
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

    @uninterrupted
    def __init__(
        self,
        bundle: Bundle,
        config: EngineConfig,
        open_store: Callable[[Bundle], PageStore] = LocalStore,
        staging: ArenaSource | None = None,
    ) -> None:
        """Open a bundle; `from_pretrained` is the usual way.

        Args:
            bundle: an open bundle.
            config: budget, devices, and tasks that never leave memory.
            open_store: opens where a bundle's pages come from, now and when it is reloaded; its own files unless
                stated. The engine checks each page, and closes the store.
            staging: how pages reach the arena; as the configured device wants it if None.

        Raises:
            TypeError: the bundle isn't open, but a path.
            ConfigError: the device isn't there.
            BudgetError: not even the smallest task fits into the budget, or not all real-time tasks together.
            BundleError, StoreError: a file is damaged or can't be opened.
        """
        for name in config.real_time:
            bundle.task(name)
        with of_bundle(bundle.path):
            opened = OpenBundle(bundle, config, open_store, staging)
        process = os.getpid()
        weakref.finalize(self, _in_process, process, opened.residency.close)
        monitor = TaskMonitor(file=None if config.history is None else HistoryFile(config.history))
        weakref.finalize(self, _in_process, process, monitor.close)
        super().__init__(opened, monitor, config)
        weakref.finalize(self, _in_process, process, self._prefetching.close)
        weakref.finalize(self, _in_process, process, self._readers.close)
        self._lock = threading.RLock()  # closing; never kept while storage works
        self._predicting = {name: threading.Lock() for name in self._real_time}  # one prediction of each at a time
        self._enter_real_time()
        self._prefetching.start()

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
        if isinstance(real_time, str):
            raise ConfigError(f"real_time: expected names of tasks, such as [{real_time!r}], got a text")
        config = EngineConfig(
            budget=stated_size(budget, "budget"),
            device=device,
            dtype=dtype,
            io_threads=io_threads,
            kv_reserve=0 if kv_reserve == 0 else parse_size(kv_reserve, "kv_reserve"),
            rows=stated_size(rows, "rows"),
            real_time=tuple(real_time),
            read_timeout=read_timeout,
            prefetch=prefetch,
            history=None if history is None else Path(history),
            backend=backend,
        )
        # The tokenizer, and what the bundle becomes, are read later, when the process may have gone elsewhere.
        return cls(Bundle.open(Path(bundle).absolute()), config)

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
        with self._explained():
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
        deadline = Deadline.after(timeout)
        with self._turn_to_activate(deadline):
            if name == self._current and (again := self._holds.enter_again(name, wait=wait)) is not None:
                return again
            previous = None if name == self._current else self._current
            left = deadline.left()  # from when the module is built
            with self._explained(previous):
                module = self._holds.hold(name, previous, self._leave_current, wait=wait, timeout=left)
            still_held, self._current = self._current, name
            if still_held is not None:
                self._holds.release(still_held)
            return module

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
        asked = checked(self.bundle.task(name), inputs)  # what is refused neither waits nor switches
        with of_bundle(self.bundle.path), self._turn_to_predict(name):
            entry, reader = self.bundle.task(name), self._readers.own(self.bundle)  # a reload may have changed them
            template = self._template(entry)
            return predict(self.model(name), reader, entry, asked, wanted=wanted, bounds=bounds, template=template)

    def stream(
        self,
        name: str,
        prompt: str | Conversation,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] | None = (),
    ) -> Iterator[str]:
        """The pieces of a prompt's continuation, as soon as they may be shown; joined they are what `predict` answers.

        Between two tokens other calls have their turn, and may switch to other tasks. The next piece switches back, and
        goes on where the text was. Where torch runs a model that can't be paused, all pieces come at the end.
        The prompt is checked at once; nothing is computed but for a piece that is asked for. Errors are those of
        `predict`, too.

        Args:
            name: of a task that generates text.
            prompt: a text; to a task whose prompts are conversations, what a user says, or a list of messages.
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
        asked = checked(entry, [prompt])
        with of_bundle(self.bundle.path):
            model, tokenizer = self.model(name), self._readers.new(self.bundle)  # which threads take in turns
            (work,) = works_of(model, tokenizer, entry, asked, wanted, self._template(entry))
        query = StreamedQuery(work)
        return self._pieces(name, query, model, begin(entry.kind, model, tokenizer, [query]))

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
        with acquired(self._activating):
            self._leave_current()

    @uninterrupted
    def close(self) -> None:
        """Drop queued loads, finish those in flight and close the bundle's files.

        Modules must not be called any more. Whoever waits for a load gets an `EngineClosedError`. In a process that was
        forked nothing happens: threads and files are its parent's.

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
            closing.callback(self._readers.close)
            closing.callback(self._residency.close)
            closing.callback(self._prefetching.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        finally:
            self.close()  # does nothing, unless Ctrl-C came before the first had begun

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

    def _template(self, entry: TaskEntry) -> ChatTemplate | None:
        return self._readers.template(self.bundle) if entry.takes_conversations else None

    def _enter_real_time(self) -> None:
        try:
            for name in sorted(self._real_time):
                with of_bundle(self.bundle.path):
                    self._holds.hold(name, is_visit=False)  # and never release
        except BaseException:
            self.close()
            raise

    @contextmanager
    def _turn_to_activate(self, deadline: Deadline) -> Iterator[None]:
        """Keep out what else changes the current task, or the bundle.

        Raises:
            BusyError: the deadline has passed meanwhile.
        """
        if not deadline.acquire(self._activating):
            raise BusyError(
                "another thread's activation, prediction or reload was still going on when the timeout passed; "
                "try again, or allow more time"
            )
        try:
            yield
        finally:
            self._activating.release()

    @bracket
    def _turn_to_predict(self, name: str, *, again: bool = False) -> Iterator[None]:
        """Keep a task active: a real-time one, which always has room, beside others, any other as the current one.

        Whoever goes on ``again`` makes no visit of its own, unless others were current meanwhile.
        """
        if name in self._real_time:  # which is held for good
            with acquired(self._predicting[name]), nullcontext() if again else self.task(name):
                yield
        else:
            with acquired(self._activating):
                if not again or name != self._current:
                    self.activate(name)
                yield

    def _leave_current(self) -> None:
        if self._current is not None:
            name, self._current = self._current, None
            self._holds.release(name)


load = Engine.from_pretrained
"""Open a bundle under a budget: `Engine.from_pretrained` in one word.

Examples:
    >>> import weightpager as wp
    >>> engine = wp.load("assistant.bundle", budget="4MiB")
    >>> engine
    <Engine '...assistant.bundle': 2 tasks, 4.0 MiB, native>
    >>> writer = wp.load("writer.bundle")  # whose tasks generate text
"""


def _in_process(process: int, close: Callable[[], None]) -> None:
    """Call ``close``, but not in a process that was forked: the parent goes on with threads and files."""
    if os.getpid() == process:
        with uninterrupted:
            close()

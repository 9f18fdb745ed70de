"""The service that the routes talk to: an engine with a queue before it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from weightpager.answers.model import ModelLimits
from weightpager.answers.work import Embed, Generate, Work
from weightpager.bundle import TaskEntry
from weightpager.engine import Engine
from weightpager.engine.bundle_change import BundleChange
from weightpager.errors import RequestError, TaskTooLargeError, UnknownTaskError
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer
from weightpager.server.inputs.image_inputs import ImageInputs
from weightpager.server.inputs.picture_inputs import PictureInputs, body_bytes
from weightpager.server.inputs.text_inputs import TextInputs, TextLimit, default_limit
from weightpager.server.inputs.vocabulary import Vocabulary
from weightpager.server.metrics import Metrics
from weightpager.server.scheduling.job import Job, Listener
from weightpager.server.scheduling.scheduler import JobQueue
from weightpager.server.scheduling.settings import Policy, Settings
from weightpager.server.scheduling.worker import Worker

_TEXTS = 8
"""Longest texts that caches hold at a time, where no part of the budget is reserved for caches."""


class RequestLimits:
    """Bounds that the settings, the bundle's tasks and the KV reserve set together."""

    def __init__(self, engine: Engine, settings: Settings, limits: ModelLimits, vocabulary: Vocabulary | None) -> None:
        """``limits`` are the engine's. ``vocabulary`` is the bundle's; None where its tasks read images."""
        self._engine = engine
        self._settings = settings
        self._vocabulary = vocabulary
        self._follow(limits)

    @property
    def policy(self) -> Policy:
        """The settings' policy, with the bounds that the model and the KV reserve set."""
        vocabulary = self._vocabulary
        policy = replace(self._settings.policy, activations=self._limits.activations, cache=self._cache)
        if vocabulary is None:
            return policy
        room = vocabulary.most_cached
        if room is None:
            longest = max(self.of(task).tokens for task in self._engine.bundle.tasks.values())
            room = self._cache.tokens(max(policy.batch, _TEXTS), longest + self._settings.most_new_tokens)
        return replace(policy, room=room, context=vocabulary.context, uniform_length=vocabulary.uniform_length)

    def of(self, task: TaskEntry) -> TextLimit:
        """What a text of a task may ask for. Those that write read it in pieces, if the model can."""
        in_pieces = task.writes and self._limits.in_pieces
        tokens = self._settings.most_text_tokens
        if tokens is None:
            context = None if self._vocabulary is None else self._vocabulary.context
            tokens = default_limit(context, task.max_length, in_pieces=in_pieces)
        return TextLimit(tokens, in_pieces, self._limits.activations)

    def check(self, task: TaskEntry, works: Sequence[Work]) -> None:
        """See that no text for a task is too long.

        Raises:
            RequestError: one is.
        """
        longest, most = max(len(work.ids) for work in works), self.of(task).tokens
        if longest > most:
            raise RequestError(
                f"expected at most {most} tokens a text, as the server's --max-text-tokens, found {longest}",
                code="context_length_exceeded",
            )
        for work in works:
            if self._vocabulary is not None and isinstance(work, Embed) and self.is_cached(task, work):
                self._vocabulary.check_kept(work.ids, "input")

    def is_cached(self, task: TaskEntry, work: Work) -> bool:
        return isinstance(work, Generate) or (isinstance(work, Embed) and self.of(task).cached(len(work.ids)))

    def is_long(self, work: Work) -> bool:
        """Whether the model reads it in another way than short texts."""
        uniform_length = math.inf if self._vocabulary is None else self._vocabulary.uniform_length
        return len(work.ids) > uniform_length

    def renew(self) -> None:
        """Follow the bundle, which was loaded anew: its tasks may be others, or compute in a wider dtype."""
        self._follow(self._engine.limits)

    def _follow(self, limits: ModelLimits) -> None:
        self._limits, self._cache = limits, self._engine.cache_size()
        reserve = self._engine.report().memory.kv_reserve
        if self._vocabulary is not None and reserve:
            self._vocabulary.most_cached = self._cache.within(reserve)


_log = logging.getLogger(__name__)

_STUCK = 10.0
"""Seconds that a step may take. With a longer one the server isn't ready, and a balancer sends requests elsewhere."""

_LAST = 3.0
"""Seconds that the worker has to end by itself, and again once the engine is closed under it."""


class Service:
    """Runs texts on an engine's tasks.

    Attributes:
        engine: closed with the service.
        started: seconds since 1970.
        pictures: reads the pictures of prompts; None where no task reads any.
        changing: held by who changes the bundle's directory.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """Nothing runs until `start`.

        Raises:
            BundleFormatError: transformers can't read the bundle's tokenizer or image processor.
            ConfigError: the tasks read images or pictures, and Pillow isn't installed.
        """
        self.engine = engine
        self.settings = settings
        reader, limits = engine.reader(), engine.limits
        self.inputs: TextInputs | ImageInputs
        if isinstance(reader, ImageReader):
            self.inputs = ImageInputs(reader, most=settings.queue // 2)
        else:
            vocabulary = Vocabulary(reader, limits)
            self.inputs = TextInputs(vocabulary, reader, most=settings.queue // 2, body_bytes=settings.body_bytes)
        self.pictures: PictureInputs | None = None
        if isinstance(reader, Tokenizer) and reader.pictures is not None:
            self.pictures = PictureInputs(reader.pictures, most=settings.queue // 2, hosts=settings.picture_hosts)
        self.queue = JobQueue(settings.queue)
        self.metrics = Metrics(engine, self.queue)
        self._limits = RequestLimits(engine, settings, limits, self.inputs.vocabulary)
        self.worker = Worker(engine, self.queue, self._limits.policy, self.metrics)
        self.started = time.time()
        self.changing = asyncio.Lock()

    def start(self) -> None:
        self.warn_of_missing()
        self._warn_of_cuts()
        self.worker.start()

    def fits(self, task: str) -> bool:
        """Whether the present budget has room for a task. Errors are those of `Engine.check_fits`."""
        try:
            self.engine.check_fits(task)
        except TaskTooLargeError:
            return False
        return True

    def fitting(self, tasks: Iterable[str]) -> dict[str, bool]:
        """As `fits` for each of these tasks; those that a reload takes away meanwhile are left out."""
        found = {}
        for task in tasks:
            with suppress(UnknownTaskError):
                found[task] = self.fits(task)
        return found

    def warn_of_missing(self) -> None:
        """Log a warning for every task that can't run; it names the budget that the task needs."""
        for task in self.engine.bundle.tasks:
            try:
                self.engine.check_fits(task)
            except TaskTooLargeError as error:
                _log.warning("%s", error)

    def answer_tokens(self, task: TaskEntry) -> int | None:
        """The most tokens of an answer to a request that states no number; None of tasks that answer no prompts."""
        return None if task.generation is None else min(task.generation.max_new_tokens, self.settings.most_new_tokens)

    def _warn_of_cuts(self) -> None:
        """Log a warning for every task whose answers may be shorter here than those that `eval` measures."""
        most = self.settings.most_new_tokens
        for task in self.engine.bundle.tasks.values():
            if task.generation is not None and task.generation.max_new_tokens > most:
                stated = task.generation.max_new_tokens
                text = "%s: answers end after --max-new-tokens %d; its task file allows %d"
                _log.warning(text, task.name, most, stated)

    @property
    def ready(self) -> bool:
        """Whether requests are taken, and the worker hasn't been busy with one thing for too long."""
        return self.worker.alive and not self.queue.closed and not self.stuck

    @property
    def stuck(self) -> bool:
        """Whether one step or load has kept the worker busy for longer than a request should wait."""
        return self.worker.busy > min(_STUCK, self.settings.timeout)

    @property
    def body_bytes(self) -> int:
        """Bytes of a request's largest body: what the settings allow, and room for pictures where tasks read any."""
        return body_bytes(self.settings.body_bytes, self.engine.bundle.pictures)

    @property
    def texts(self) -> TextInputs:
        """Reads texts into token ids.

        Raises:
            RequestError: the bundle's tasks read images.
        """
        if not isinstance(self.inputs, TextInputs):
            raise RequestError("expected a task that reads texts, those of this bundle read images", "model")
        return self.inputs

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokens that its tasks read. Errors are those of `texts`."""
        return self.texts.vocabulary

    def task(self, name: str) -> TaskEntry:
        return self.engine.bundle.task(name)

    def admit(self, task: TaskEntry, texts: int, pictures: int = 0) -> None:
        """Reserve places in the queue for a request's texts, or its pictures, before anything is done for them.

        Raises:
            TaskTooLargeError: the budget never holds the task.
            RequestError: they are more than may ever wait.
            QueueFullError: too many are waiting.
            ServerClosedError: the server is shutting down.
        """
        self.engine.check_fits(task.name)
        self.inputs.lanes.check_room(texts)
        self.queue.reserve(max(texts, pictures))

    def submit(
        self, task: TaskEntry, works: Sequence[Work], listener: Listener, deadline: float | None = None
    ) -> list[Job]:
        """Queue a request's texts, in places that were reserved; the listener is told of each by its number.

        Without a deadline, by `time.monotonic`, the request has its whole time from now on.

        Raises:
            RequestError: one is too long.
            ServerClosedError: the server is shutting down.
        """
        self._limits.check(task, works)
        now = time.monotonic()
        deadline = now + self.settings.timeout if deadline is None else deadline
        limits = self._limits
        jobs = [
            Job(
                task,
                work,
                index,
                now,
                deadline,
                listener,
                long=limits.is_long(work),
                cached=limits.is_cached(task, work),
            )
            for index, work in enumerate(works)
        ]
        self.queue.put(jobs)
        return jobs

    def set_budget(self, budget: str) -> None:
        """Use more or less memory; only in the worker's own thread. Errors are those of the engine."""
        self.engine.set_budget(budget)
        self.warn_of_missing()

    def reload(self) -> BundleChange:
        """Take over changes of the bundle; only in the worker's own thread. Errors are those of the engine."""
        change = self.engine.reload()
        self._limits.renew()
        self.worker.policy = self._limits.policy
        self.warn_of_missing()
        self._warn_of_cuts()
        return change

    def retry_after(self) -> int:
        """Seconds after which a client whose request was refused may try again."""
        return max(1, round(self.settings.policy.patience))

    def end(self) -> None:
        """Refuse the jobs that wait, and end those under way after their present forward. Returns at once."""
        self.worker.stop(timeout=0)

    def close(self) -> None:
        """Refuse the jobs that wait, end those under way, and close the engine.

        Work that doesn't end within some seconds is left behind in its thread; the worker is still alive then.
        """
        self.inputs.close()
        if self.pictures is not None:
            self.pictures.close()
        self.worker.stop(timeout=_LAST)
        # Closing waits for the layer that is being computed, which may take long: it has a thread of its own.
        closing = threading.Thread(target=self.engine.close, name="weightpager-close", daemon=True)
        closing.start()
        closing.join(_LAST)
        self.worker.stop(timeout=_LAST)

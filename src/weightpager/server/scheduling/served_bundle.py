"""A bundle that a server serves: what reads requests to its tasks, and how large they may be."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from weightpager.answers.kept import Kept
from weightpager.answers.model import ModelLimits, TaskModel
from weightpager.answers.work import Embed, Generate, Work
from weightpager.bundle import Bundle, TaskEntry
from weightpager.engine import Engine
from weightpager.engine.report import EngineReport, ResidencyMap
from weightpager.engine.shared_bundle import SharedBundle
from weightpager.errors import EngineClosedError, RequestError
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer
from weightpager.server.inputs.image_inputs import ImageInputs
from weightpager.server.inputs.picture_inputs import PictureInputs
from weightpager.server.inputs.text_inputs import TextInputs, TextLimit, default_limit
from weightpager.server.inputs.vocabulary import Vocabulary
from weightpager.server.scheduling.settings import BatchLimits, Settings

_TEXTS = 8
"""Longest texts that caches hold at a time, where no part of the budget is reserved for caches."""


@dataclass(frozen=True)
class RequestReaders:
    """What reads the requests to a bundle's tasks. They have threads, and tokenizers in memory.

    Attributes:
        inputs: reads texts, or images.
        pictures: reads the pictures of prompts; None where no task reads any.
    """

    inputs: TextInputs | ImageInputs
    pictures: PictureInputs | None

    @classmethod
    def open(cls, reader: Tokenizer | ImageReader, limits: ModelLimits, settings: Settings) -> RequestReaders:
        """Errors are those of `Engine.reader`, and a `ConfigError` where Pillow isn't installed for pictures."""
        most = settings.queue // 2
        if isinstance(reader, ImageReader):
            return cls(ImageInputs(reader, most=most), None)
        texts = TextInputs(Vocabulary(reader, limits), reader, most=most, body_bytes=settings.body_bytes)
        if reader.pictures is None:
            return cls(texts, None)
        return cls(texts, PictureInputs(reader.pictures, most=most, hosts=settings.picture_hosts))

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

    def close(self) -> None:
        self.inputs.close()
        if self.pictures is not None:
            self.pictures.close()


class ServedBundle:
    """One bundle of a server. Requests may be read while it sleeps, as its tokenizer is opened alone then.

    Attributes:
        changing: held by who changes the bundle's directory.
    """

    def __init__(self, source: Engine | SharedBundle, settings: Settings, prefix: str = "") -> None:
        """Read what bounds requests.

        Args:
            source: the bundle's engine, or the bundle, awake, that shares a budget.
            settings: of the server.
            prefix: what its tasks' names begin with where a server has several bundles.

        Raises:
            BundleFormatError: transformers can't read the bundle's tokenizer or image processor.
            ConfigError: the tasks read images or pictures, and Pillow isn't installed.
        """
        self._source, self._settings, self._prefix = source, settings, prefix
        self.changing = asyncio.Lock()
        self._opening = threading.Lock()
        self._asked = time.monotonic()
        self._readers: RequestReaders | None = None
        self._worker_reader: Tokenizer | ImageReader | None = None
        self._named: tuple[Bundle | None, Mapping[str, TaskEntry]] = None, {}
        self._followed: Bundle | None = None
        self._batch_limits: BatchLimits | None = None
        self.follow()
        self.readers()

    @property
    def name(self) -> str:
        return self._source.name if isinstance(self._source, SharedBundle) else ""

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was when it was opened or last reloaded."""
        return self._source.bundle

    @property
    def engine(self) -> Engine:
        """Its engine. Raises an `EngineClosedError` while it sleeps."""
        return self._source.awake() if isinstance(self._source, SharedBundle) else self._source

    @property
    def is_awake(self) -> bool:
        return not isinstance(self._source, SharedBundle) or self._source.engine is not None

    @property
    def tasks(self) -> Mapping[str, TaskEntry]:
        """Its tasks by the names that clients know, which the entries have, too."""
        bundle = self.bundle
        if not self._prefix:
            return bundle.tasks
        known, tasks = self._named
        if known is not bundle:
            tasks = {
                self.known(name): msgspec.structs.replace(task, name=self.known(name))
                for name, task in bundle.tasks.items()
            }
            self._named = bundle, tasks
        return tasks

    def readers(self) -> RequestReaders:
        """What reads requests. To open it takes a tenth of a second. Errors are those of the beginning."""
        with self._opening:
            self._asked = time.monotonic()
            if self._readers is None:
                self._readers = RequestReaders.open(self._source.reader(), self._limits, self._settings)
                if isinstance(self._readers.inputs, TextInputs):
                    self._readers.vocabulary.most_cached = self._room
            return self._readers

    @property
    def reads(self) -> bool:
        """Whether what reads requests is open."""
        return self._readers is not None

    def doze(self) -> bool:
        """Close what reads requests if the bundle sleeps and no request of it can be under way; whether that was done.

        For the worker.
        """
        with self._opening:
            if self._readers is None or self.is_awake or time.monotonic() - self._asked <= self._settings.timeout:
                return False
            readers, self._readers, self._worker_reader = self._readers, None, None
        readers.close()
        if isinstance(self._source, SharedBundle):
            self._source.close()
        return True

    def close(self) -> None:
        if self._readers is not None:
            self._readers.close()

    def report(self) -> EngineReport | None:
        """The state of its engine; None while it sleeps. Bytes are counted since it was first opened."""
        return self._source.report()

    def residency(self) -> ResidencyMap | None:
        """Which of its pages are in memory now; None while it sleeps."""
        try:
            return self.engine.residency()
        except EngineClosedError:
            return None

    def shares(self) -> dict[str, float]:
        """How much of each task's pages is in memory, from 0 to 1, by the names that clients know."""
        residency = self.residency()
        if residency is None:
            return dict.fromkeys(self.tasks, 0.0)
        return {self.known(task): residency.share(task) for task in residency.needs}

    @property
    def resident_tasks(self) -> list[str]:
        """Its tasks that could be entered now without loading anything."""
        try:
            return [self.known(name) for name in self.engine.resident_tasks]
        except EngineClosedError:  # it sleeps
            return []

    def model(self, task: str) -> TaskModel:
        return self.engine.model(self.short(task))

    def kept(self, task: str) -> Kept:
        return self.engine.kept(self.short(task))

    def check_unpinned(self, task: str) -> None:
        """Check that a task, by its name in the bundle, can leave it. Errors are those of `Engine.check_unpinned`."""
        if self.is_awake:
            self.engine.check_unpinned(task)

    def hold(self) -> Callable[[], None]:
        """Keep it awake until what is returned is called."""
        return self._source.hold() if isinstance(self._source, SharedBundle) else _nothing

    @property
    def worker_reader(self) -> Tokenizer | ImageReader:
        """The worker's own reader."""
        if self._worker_reader is None:
            self._worker_reader = self._source.reader()
        return self._worker_reader

    def short(self, task: str) -> str:
        """A task's name in the bundle."""
        return task.removeprefix(self._prefix)

    def known(self, task: str) -> str:
        """The name that clients know, of a task by its name in the bundle."""
        return self._prefix + task

    def whole(self, task: str) -> str:
        """A task's name for what runs it: among those of all bundles that share a budget, or for its engine."""
        return f"{self.name}/{self.short(task)}" if self.name else task

    def named(self, whole: str) -> str | None:
        """The name that clients know, of a task by its name for what runs it; None if that isn't one of these."""
        begins = f"{self.name}/" if self.name else ""
        task = self.known(whole.removeprefix(begins))
        return task if whole.startswith(begins) and task in self.tasks else None

    def found(self, name: str) -> TaskEntry | None:
        """A task by the name that clients know, by its name in the bundle, or with both; None if there is none."""
        tasks = self.tasks
        return tasks.get(name) or tasks.get(self.known(name.removeprefix(f"{self.name}/")))

    def follow(self) -> None:
        """Follow the bundle, if it was loaded anew: its tasks may be others, or compute in a wider dtype.

        It is awake; for the worker.
        """
        if self._followed is self.bundle:
            return
        engine, self._followed, self._batch_limits = self.engine, self.bundle, None
        self._limits, self._cache = engine.limits, engine.cache_size()
        reserve = engine.report().memory.kv_reserve
        self._room = self._cache.within(reserve) if reserve else None
        if self._readers is not None and isinstance(self._readers.inputs, TextInputs):
            self._readers.vocabulary.most_cached = self._room

    @property
    def limits(self) -> ModelLimits:
        """How much its model can read."""
        return self._limits

    @property
    def batch_limits(self) -> BatchLimits:
        """What its model and the KV reserve allow of a batch."""
        if self._batch_limits is None:
            self._batch_limits = self._allowed()
        return self._batch_limits

    def _allowed(self) -> BatchLimits:
        found = BatchLimits(self.name, cache=self._cache, activations=self._limits.activations)
        vocabulary = self._vocabulary
        if vocabulary is None:
            return found
        room = self._room
        if room is None:
            longest = max(self.text_limit(task).tokens for task in self.bundle.tasks.values())
            texts = max(self._settings.policy.batch, _TEXTS)
            room = self._cache.tokens(texts, longest + self._settings.most_new_tokens)
        return replace(found, room=room, context=vocabulary.context, uniform_length=vocabulary.uniform_length)

    @property
    def _vocabulary(self) -> Vocabulary | None:
        return self.readers().inputs.vocabulary

    def text_limit(self, task: TaskEntry) -> TextLimit:
        """What a text of a task may ask for. Those that write read it in pieces, if the model can."""
        in_pieces = task.writes and self._limits.in_pieces
        tokens = self._settings.most_text_tokens
        if tokens is None:
            vocabulary = self._vocabulary
            context = None if vocabulary is None else vocabulary.context
            tokens = default_limit(context, task.max_length, in_pieces=in_pieces)
        return TextLimit(tokens, in_pieces, self._limits.activations)

    def answer_tokens(self, task: TaskEntry) -> int | None:
        """The most tokens of an answer to a request that states no number; None of tasks that answer no prompts."""
        most = self._settings.most_new_tokens
        return None if task.generation is None else min(task.generation.max_new_tokens, most)

    def check(self, task: TaskEntry, works: Sequence[Work]) -> None:
        """See that no text for a task is too long.

        Raises:
            RequestError: one is.
        """
        longest, most = max(len(work.ids) for work in works), self.text_limit(task).tokens
        if longest > most:
            raise RequestError(
                f"expected at most {most} tokens a text, as the server's --max-text-tokens, found {longest}",
                code="context_length_exceeded",
            )
        vocabulary = self._vocabulary
        for work in works:
            if vocabulary is not None and isinstance(work, Embed) and self.is_cached(task, work):
                vocabulary.check_kept(work.ids, "input")

    def is_cached(self, task: TaskEntry, work: Work) -> bool:
        """Whether keys and values are kept for it, and it is done in steps."""
        return isinstance(work, Generate) or (isinstance(work, Embed) and self.text_limit(task).cached(len(work.ids)))

    def is_long(self, work: Work) -> bool:
        """Whether the model reads it in another way than short texts."""
        vocabulary = self._vocabulary
        uniform_length = math.inf if vocabulary is None else vocabulary.uniform_length
        return len(work.ids) > uniform_length


def _nothing() -> None:
    """Let go of nothing."""

"""An engine with a queue before it: what the routes talk to."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from weightpager.bundle import TaskEntry
from weightpager.engine import Engine
from weightpager.engine.architecture import (
    context_length,
    empty_module,
    even_length,
    image_reader,
    read_config,
    takes_images,
)
from weightpager.engine.bundle_change import BundleChange
from weightpager.errors import RequestError
from weightpager.server.image_inputs import ImageInputs
from weightpager.server.job import Job, Listener
from weightpager.server.job_queue import JobQueue
from weightpager.server.kv_cache import bytes_per_token
from weightpager.server.metrics import Metrics
from weightpager.server.scheduler import Policy
from weightpager.server.settings import Settings
from weightpager.server.timeline import Timeline
from weightpager.server.vocabulary import Vocabulary
from weightpager.server.work import Work
from weightpager.server.worker import Worker


class Service:
    """Runs texts on an engine's tasks.

    Attributes:
        engine: closed with the service.
        settings: how it serves.
        queue, worker, metrics, timeline: of this server.
        started: seconds since 1970.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        """Nothing runs until `start`.

        Raises:
            BundleFormatError: transformers can't read the bundle's tokenizer or image processor.
            ConfigError: the tasks read images, and Pillow isn't installed.
        """
        self.engine = engine
        self.settings = settings
        self._config = read_config(engine.bundle)
        images = takes_images(engine.bundle)
        self._images = ImageInputs(image_reader(engine.bundle)) if images else None
        self._vocabulary = None if images else _vocabulary(engine, self._config)
        self.queue = JobQueue(settings.queue)
        self.metrics = Metrics(engine, self.queue)
        self.timeline = Timeline(self.metrics.switched)
        self.worker = Worker(engine, self.queue, self._policy(), self.metrics, self.timeline)
        self.started = time.time()

    def start(self) -> None:
        """Take requests from now on."""
        self.worker.start()

    @property
    def ready(self) -> bool:
        """Whether requests are taken."""
        return self.worker.alive and not self.queue.closed

    @property
    def vocabulary(self) -> Vocabulary:
        """Texts to token ids.

        Raises:
            RequestError: the bundle's tasks read images.
        """
        if self._vocabulary is None:
            raise RequestError("expected a task that reads texts, those of this bundle read images", "model")
        return self._vocabulary

    @property
    def images(self) -> ImageInputs:
        """Data URLs to pixels.

        Raises:
            RequestError: the bundle's tasks read texts.
        """
        if self._images is None:
            raise RequestError("expected a task that reads images, those of this bundle read texts", "model")
        return self._images

    def task(self, name: str) -> TaskEntry:
        """A task of the bundle.

        Raises:
            UnknownTaskError: there is none of that name.
        """
        return self.engine.bundle.task(name)

    def submit(self, task: TaskEntry, works: Sequence[Work], listener: Listener) -> list[Job]:
        """Queue a request's texts; the listener hears of each by its place in ``works``.

        Raises:
            RequestError: they are more than may ever wait.
            QueueFullError: too many are waiting.
            ServerClosedError: the server is shutting down.
        """
        now = time.monotonic()
        deadline = now + self.settings.timeout
        alike = math.inf if self._vocabulary is None else self._vocabulary.together
        jobs = [
            Job(task, work, index, now, deadline, listener, long=len(work.ids) > alike)
            for index, work in enumerate(works)
        ]
        self.queue.put(jobs)
        return jobs

    def reload(self) -> BundleChange:
        """Take over what has become of the bundle; only in the worker's own thread. Errors are those of the engine."""
        change = self.engine.reload()
        if self._vocabulary is not None:
            self._vocabulary.most_cached = _room(self.engine, self._config)  # tasks may compute in wider numbers now
        self.worker.policy = self._policy()
        return change

    def retry_after(self) -> int:
        """Seconds after which a client that was turned away may try again."""
        return max(1, round(self.settings.policy.patience))

    def close(self) -> None:
        """Refuse what waits, let the running batch end, and close the engine."""
        self.worker.stop(timeout=self.settings.timeout)
        self.engine.close()

    def _policy(self) -> Policy:
        """With what the model and the KV reserve have room for."""
        read, policy = self._vocabulary, self.settings.policy
        if read is None:
            return policy
        return replace(policy, room=read.most_cached, context=read.context, together=read.together)


def _vocabulary(engine: Engine, config: Any) -> Vocabulary:
    tokenizer, task = engine.tokenizer(), next(iter(engine.bundle.tasks.values()))
    context = context_length(empty_module(config, task), tokenizer)
    return Vocabulary(
        tokenizer, int(config.get_text_config().vocab_size), context, _room(engine, config), even_length(config)
    )


def _room(engine: Engine, config: Any) -> int | None:
    """Tokens that the budget's KV reserve holds; None without one, as caches then are no part of the budget."""
    reserve = engine.report().memory.kv_reserve
    widest = max(engine.dtype(task).itemsize for task in engine.bundle.tasks)
    return reserve // bytes_per_token(config, widest) if reserve else None

"""What one compile takes from the cache and gives to it: a sweep pays once for what its compiles have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

import torch
from torch import Tensor

from weightpager.answers.score import Outcomes, Score
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.identities import stage_identities
from weightpager.compiler.resume.journal import Job, Journal, Value, Workers
from weightpager.compiler.task_file.file import TaskFile
from weightpager.config import format_duration
from weightpager.progress import Progress, StepProgress, silent

_log = logging.getLogger(__name__)

_PARTS = ("sums", "counts", "others")
"""Fields of `Outcomes`."""

COPIES = 3
"""A calibration holds the model, sums as large and, one by one, gradients; a measurement the model, and activations."""

Scores = dict[str, Score]
"""Scores by task."""


@dataclass
class Shared:
    """What a compile finds in the cache, and puts there.

    Attributes:
        cache: where finished stages are kept.
        dense_id, scores_id, calibration_id: names of what the cache has of the dense model, its scores and its
            calibration. Each is a hash of all that these depend on.
        seconds: the time that calibrations from the cache took when they were made, by task.
    """

    cache: Cache
    dense_id: str
    scores_id: str
    calibration_id: str
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, task_file: TaskFile, base: str, cache: Cache) -> Shared:
        """Name the stages of a compile; ``base`` is the identity of the bundle that tasks are added to.

        Raises:
            CompileError: a file can't be read.
        """
        return cls(cache, *stage_identities(task_file, base))

    def journal(self, journal: Journal) -> Journal:
        """The part of a compile's journal in which the dense model's training stands."""
        return journal.part("dense", self.dense_id, self.cache)

    def training_ended(self, journal: Journal, stages: Sequence[str]) -> None:
        """Keep what stages of a journal have trained, if anything, and say what time the cache saved or will save."""
        saved = [seconds for seconds in map(journal.give_to_cache, stages) if seconds is not None]
        if saved:
            _log.info("the dense model: taken from the cache, %s saved", format_duration(sum(saved)))
        elif any(map(journal.is_in_cache, stages)):
            _log.info(
                "the dense model is kept in %s: another sparsity or dtype won't train it again", self.cache.folder
            )

    def scores(
        self, source: DenseModel, jobs: Mapping[str, Job[Score]], workers: Workers, progress: Progress
    ) -> Scores:
        """The dense model's scores on held-out data, by task: from the cache, or found by ``jobs``."""

        def told(task: str) -> StepProgress:
            return partial(progress, f"measure dense {task}")

        outcomes = {
            task: Outcomes(*(tensors[part].numpy() for part in _PARTS))
            for task, tensors, _ in self._each(
                "scores", self.scores_id, set(_PARTS), _Misses(workers, jobs, _parts, told)
            )
        }
        return {
            name: Score.of(task.kind, outcomes[name], task.wanted_metrics)
            for name, task in source.task_file.tasks.items()
        }

    def calibrations(
        self, source: DenseModel, jobs: Mapping[str, Job[dict[str, Tensor]]], workers: Workers
    ) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Tasks' calibrations on the dense model before anything has moved: from the cache, or found by ``jobs``.

        They come one at a time, in any order, and each is given back as soon as the next one is asked for.
        """
        names = {info.name for info in source.paged}
        misses = _Misses(workers, jobs, dict, lambda _task: silent)
        for task, tensors, seconds in self._each("sums", self.calibration_id, names, misses):
            if seconds is not None:
                self.seconds[task] = seconds
            yield task, tensors

    def calibrated(self) -> None:
        """Say how much time the cache saved."""
        if self.seconds:
            saved = format_duration(sum(self.seconds.values()))
            _log.info("calibration of %s: taken from the cache, %s saved", ", ".join(self.seconds), saved)

    def _each(
        self, stage: str, identity: str, names: set[str], misses: _Misses[Value]
    ) -> Iterator[tuple[str, dict[str, Tensor], float | None]]:
        """Each task's tensors of these names: from the cache, with the seconds that they took there; or as found.

        What is found is in the cache before the next one is waited for.
        """
        owner = {"identity": identity}
        missing: dict[str, Job[Value]] = {}
        for task, job in misses.jobs.items():
            entry = self.cache.read(f"{stage}-{task}", owner)
            if entry is not None and entry.tensors.keys() == names:
                yield task, entry.tensors, entry.seconds
            else:
                missing[task] = job
            del entry
        for done in misses.workers.each(missing, misses.told, COPIES):
            tensors = misses.tensors(done.value)
            self.cache.write(f"{stage}-{done.key}", owner, done.seconds, tensors)
            yield done.key, tensors, None
            del done, tensors


@dataclass(frozen=True)
class _Misses(Generic[Value]):
    """How results that the cache lacks are computed.

    Attributes:
        workers: those who do the jobs.
        jobs: the jobs that compute them, by task.
        tensors: makes of a job's result what the cache keeps.
        told: gives, for a task, who is told of its job's steps.
    """

    workers: Workers
    jobs: Mapping[str, Job[Value]]
    tensors: Callable[[Value], dict[str, Tensor]]
    told: Callable[[str], StepProgress]


def _parts(score: Score) -> dict[str, Tensor]:
    return {part: torch.from_numpy(getattr(score.outcomes, part)) for part in _PARTS}

"""What one compile takes from the cache and gives to it: a sweep pays once for what its compiles have in common."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from weightpager.answers.score import Outcomes, Score
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.identities import stage_identities
from weightpager.compiler.resume.journal import Done, Job, Journal, Value, Workers
from weightpager.compiler.task_file.file import TaskFile
from weightpager.config import format_duration
from weightpager.progress import Progress, StepProgress, silent

_log = logging.getLogger(__name__)

_PARTS = ("sums", "counts", "others")
"""Fields of `Outcomes`."""

COPIES = 3
"""A calibration holds the model, sums as large and, one by one, gradients; a measurement the model, and activations."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Shared:
    """What a compile finds in the cache, and puts there.

    Attributes:
        cache: where finished stages are kept.
        dense_id, scores_id, calibration_id: names of what the cache has of the dense model, its scores and its
            calibration. Each is a hash of all that these depend on.
    """

    cache: Cache
    dense_id: str
    scores_id: str
    calibration_id: str

    @classmethod
    def of(cls, task_file: TaskFile, base: str, cache: Cache) -> Shared:
        """Name the stages of a compile; ``base`` is the identity of the bundle that tasks are added to."""
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
    ) -> dict[str, Score]:
        """The dense model's scores on held-out data, by task: from the cache, or found by ``jobs``."""

        def found(missing: Mapping[str, Job[Score]]) -> Iterator[Done[str, Tensors]]:
            def told(task: str) -> StepProgress:
                return partial(progress, f"measure dense {task}")

            for done in workers.each(missing, told, COPIES):
                parts = {part: torch.from_numpy(getattr(done.value.outcomes, part)) for part in _PARTS}
                yield Done(done.key, parts, done.seconds)

        each = self._each("scores", self.scores_id, set(_PARTS), jobs, found)
        outcomes = {task: Outcomes(*(tensors[part].numpy() for part in _PARTS)) for task, tensors, _ in each}
        return {
            name: Score.of(task.kind, outcomes[name], task.wanted_metrics)
            for name, task in source.task_file.tasks.items()
            if name in outcomes
        }

    def calibrations(
        self, source: DenseModel, jobs: Mapping[str, Job[Tensors]], workers: Workers
    ) -> Iterator[tuple[str, Tensors]]:
        """Tasks' calibrations on the dense model before anything has moved: from the cache, or found by ``jobs``.

        They come one at a time, in any order, and each is given back as soon as the next one is asked for.
        """

        def found(missing: Mapping[str, Job[Tensors]]) -> Iterator[Done[str, Tensors]]:
            return workers.each(missing, lambda _task: silent, COPIES)

        names, saved = {info.name for info in source.paged}, {}
        for task, tensors, seconds in self._each("sums", self.calibration_id, names, jobs, found):
            if seconds is not None:
                saved[task] = seconds
            yield task, tensors
            del tensors
        if saved:
            tasks, time = ", ".join(saved), format_duration(sum(saved.values()))
            _log.info("calibration of %s: taken from the cache, %s saved", tasks, time)

    def _each(
        self,
        stage: str,
        identity: str,
        names: set[str],
        jobs: Mapping[str, Job[Value]],
        find: Callable[[Mapping[str, Job[Value]]], Iterator[Done[str, Tensors]]],
    ) -> Iterator[tuple[str, Tensors, float | None]]:
        """Each task's tensors of these names: from the cache, with the seconds that they took there; or as found.

        What is found is in the cache before the next one is waited for.
        """
        owner = {"identity": identity}
        missing: dict[str, Job[Value]] = {}
        for task, job in jobs.items():
            entry = self.cache.read(f"{stage}-{task}", owner)
            if entry is not None and entry.tensors.keys() == names:
                yield task, entry.tensors, entry.seconds
            else:
                missing[task] = job
            del entry
        for done in find(missing):
            self.cache.write(f"{stage}-{done.key}", owner, done.seconds, done.value)
            yield done.key, done.value, None
            del done

"""What one compile takes from the cache and gives to it: a sweep pays once for what its compiles have in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from weightpager.answers.score import Outcomes, Score
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.identities import stage_identities
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.task_file.file import TaskFile
from weightpager.config import format_duration

_log = logging.getLogger(__name__)

_PARTS = ("sums", "counts", "others")
"""Fields of `Outcomes`."""


@dataclass
class Shared:
    """The cache, and under which names a compile's stages lie there.

    Attributes:
        cache: where finished stages are kept.
        dense, held_out, sums: the identities of the dense model, its scores and its calibration.
        seconds: that calibrations from the cache took when they were made.
    """

    cache: Cache
    dense: str
    held_out: str
    sums: str
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
        return journal.part("dense", self.dense, self.cache)

    def training_ended(self, kept: Journal, stage: str) -> None:
        """Keep what a stage of `journal` has trained, if anything, and say what time the cache saved or will save."""
        saved = kept.keep(stage)
        if saved is not None:
            _log.info("the dense model: taken from the cache, %s saved", format_duration(saved))
        elif kept.settled(stage):
            _log.info(
                "the dense model is kept in %s: another sparsity or dtype won't train it again", self.cache.folder
            )

    def scores(self, source: Source, measure: Callable[[], dict[str, Score]]) -> dict[str, Score]:
        """The dense model's scores on held-out data, by task: from the cache, or measured."""
        tasks = source.task_file.tasks

        def outcomes() -> dict[str, Tensor]:
            return {
                f"{task}/{part}": torch.from_numpy(getattr(score.outcomes, part))
                for task, score in measure().items()
                for part in _PARTS
            }

        names = {f"{task}/{part}" for task in tasks for part in _PARTS}
        found, _ = self._kept("scores", self.held_out, names, outcomes)
        return {
            name: Score.of(
                task.kind, Outcomes(*(found[f"{name}/{part}"].numpy() for part in _PARTS)), task.wanted_metrics
            )
            for name, task in tasks.items()
        }

    def calibration(self, source: Source, task: str, measure: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """A task's calibration on the dense model before anything has moved: from the cache, or measured."""
        names = {info.name for info in source.paged}
        found, seconds = self._kept(f"sums-{task}", self.sums, names, measure)
        if seconds is not None:
            self.seconds[task] = seconds
        return found

    def calibrated(self) -> None:
        """Say how much time the cache saved."""
        if self.seconds:
            saved = format_duration(sum(self.seconds.values()))
            _log.info("calibration of %s: taken from the cache, %s saved", ", ".join(self.seconds), saved)

    def _kept(
        self, stage: str, identity: str, names: set[str], measure: Callable[[], dict[str, Tensor]]
    ) -> tuple[dict[str, Tensor], float | None]:
        """Tensors of these names from the cache, and the seconds that they took; or as measured, and None."""
        owner, start = {"identity": identity}, time.monotonic()
        entry = self.cache.read(stage, owner)
        if entry is not None and entry.tensors.keys() == names:
            return entry.tensors, entry.seconds
        measured = measure()
        self.cache.write(stage, owner, time.monotonic() - start, measured)
        return measured, None

"""Measuring a bundle that was just written, through the backend that a device takes by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weightpager.answers.score import Score
from weightpager.bundle import Bundle
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.data.splits import TaskData
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.errors import CompileError
from weightpager.evaluation.measure import score_task
from weightpager.kernels.torch import calls
from weightpager.progress import Progress


@dataclass(frozen=True)
class Written:
    """A bundle that was written, and measured.

    Attributes:
        bundle: opened where it was written.
        scores: of each task that was compiled, on its held-out data.
        backend: that ran the tasks, "native" or "torch".
    """

    bundle: Bundle
    scores: Mapping[str, Score]
    backend: str


def measure_written(root: Path, data: Mapping[str, TaskData], progress: Progress) -> Written:
    """Open a bundle as a device does, and measure its tasks.

    Raises:
        CompileError: tasks ran without paged weights.
    """
    bundle = Bundle.open(root)
    with Engine(bundle, EngineConfig()) as engine:
        backend, before = engine.report().backend, calls()
        held_out = {name: of_task.held_out().mapped(Batch.arrays) for name, of_task in data.items()}
        scores = {name: score_task(engine, name, batches, progress) for name, batches in held_out.items()}
        if backend == "torch" and calls() == before:
            raise CompileError("expected the paged kernel to run while the bundle was measured, but it did not")
    return Written(bundle, scores, backend)

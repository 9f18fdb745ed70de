"""Measuring a bundle that was just written, through the backend that a device takes by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightpager.answers.score import Score
from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import FORMS
from weightpager.bundle.report.page_statistics import mean_overlap, over_read, overlap, page_fill, paged_share
from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.resume.journal import LOCAL, CompileRun, Workers
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.device import autocast
from weightpager.compiler.training.evaluate import Model, evaluate
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.errors import CompileError
from weightpager.evaluation import score_task, task_score
from weightpager.kernels.torch import calls
from weightpager.page_dtype import PageDtype
from weightpager.progress import Progress, StepProgress

_OpenEngine = Callable[[], AbstractContextManager[Engine]]
"""Gives a job an engine on the bundle."""

_COPIES = 4
"""A job holds the bundle's files, and opens them: what is in memory of them may be wider than on disk."""


@dataclass(frozen=True)
class Written:
    """A bundle that was written, its scores on held-out data by task, and the backend that ran: "native" or "torch"."""

    bundle: Bundle
    scores: Mapping[str, Score]
    backend: str


def measure_written(root: Path, data: Mapping[str, TaskData], progress: Progress, workers: Workers = LOCAL) -> Written:
    """Open a bundle as a device does, and measure its tasks. Raises `CompileError` if no paged weight ran."""
    bundle = Bundle.open(root)

    def told(task: str) -> StepProgress:
        return partial(progress, f"measure {task}")

    if not data:  # a bundle that can't be opened must not be written all the same
        with Engine(bundle, EngineConfig()) as engine:
            return Written(bundle, {}, engine.report().backend)
    with _opening(bundle, root, here=workers.here) as opened:
        jobs = {name: partial(_measured, opened, name, of_task) for name, of_task in data.items()}
        measured = {one.key: one.value for one in workers.each(jobs, told, _COPIES)}
    return Written(bundle, {name: measured[name][0] for name in data}, next(iter(measured.values()))[1])


@contextmanager
def _opening(bundle: Bundle, root: Path, *, here: bool) -> Iterator[_OpenEngine]:
    if here:
        with Engine(bundle, EngineConfig()) as engine:  # one for all jobs
            yield lambda: nullcontext(engine)
    else:
        yield partial(_engine_over, _contents(root))


def _contents(root: Path) -> dict[str, Tensor]:
    """A bundle as it travels with a job to another machine: its files' bytes by path."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): _content(path) for path in paths}


def _content(path: Path) -> Tensor:
    return torch.from_numpy(np.fromfile(path, np.uint8))


@contextmanager
def _engine_over(files: Mapping[str, Tensor]) -> Iterator[Engine]:
    """An engine on a bundle that has come with a job, in a folder of this machine."""
    with TemporaryDirectory(prefix="weightpager-measure-") as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            content.numpy().tofile(path)
        with Engine(Bundle.open(folder), EngineConfig()) as engine:
            yield engine


def _measured(opened: _OpenEngine, task: str, data: TaskData, progress: StepProgress) -> tuple[Score, str]:
    """A task's score, and the backend that ran it."""
    with opened() as engine:
        backend, before = engine.report().backend, calls()
        score = score_task(engine, task, data.held_out().mapped(Batch.arrays), progress)
        if backend == "torch" and calls() == before and len(engine.bundle.pages_of(task)):
            raise CompileError("expected the paged kernel to run while the bundle was measured, but it did not")
    return score, backend


def common_fields(written: Written, prepared: Prepared, run: CompileRun) -> dict[str, Any]:
    """The fields of a `CompileReport` that are found in the same way for every bundle; ``run`` has ended."""
    bundle = written.bundle
    share = paged_share(bundle)
    return {
        "tasks": [task_score(bundle, name, score, prepared.dense[name]) for name, score in written.scores.items()],
        "backend": written.backend,
        "mean_overlap": mean_overlap(overlap(bundle)),
        "page_bytes": bundle.page_bytes,
        "page_fill": page_fill(bundle),
        "over_read": over_read(bundle),
        "seconds": run.seconds,
        "peak_memory": run.peak_memory,
        "memory_bound": run.memory_bound,
        "threads": torch.get_num_threads(),
        "tied": {name: list(others) for name, others in prepared.source.tied.items()},
        "evenness": prepared.evenness,
        "paged_share": share.share,
        "not_paged": dict(share.others),
    }


def score_alone(source: DenseModel, task: str, data: TaskData, progress: StepProgress) -> Score:
    """`torch_score` of a task's module as it is."""
    return torch_score(source.models[task], data, source.task_file.dtype, progress)


def torch_score(model: Model, task: TaskData, dtype: PageDtype, progress: StepProgress) -> Score:
    """Score a module on held-out data; with pages of float32 nothing is rounded.

    Where right answers are counted, matrices are multiplied in bfloat16 if that is faster on this machine, as in
    training. A text's likelihood would suffer from logits of eight bits.

    Raises:
        ValueError: no label counts.
    """
    exact = dtype == "float32" or FORMS[task.kind].writes
    with nullcontext() if exact else autocast(torch.device("cpu")):
        return evaluate(model, task.held_out(), task.kind, progress, task.asked)

"""How fast recovery trains: products with kept blocks alone, against products with whole weights under masks.

    python -m benchmarks.compiling.training --domain D --density 0.5 --json training.json

Every batch goes through both ways, in turns; the time is the process's, forward and backward, the teacher's included.
Masks are random, and weights are those of a dense model that was hardly trained: neither changes the speed.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from benchmarks import row_file
from benchmarks.accuracy.__main__ import Domain, task_file
from benchmarks.accuracy.settings import effort_of
from weightpager.cli.progress import progress
from weightpager.compiler.data import Batch
from weightpager.compiler.prepare import train_and_measure_dense
from weightpager.compiler.recovery.finetune import Lesson
from weightpager.compiler.recovery.rounding import Rounding
from weightpager.compiler.recovery.training_loop import alternating_batches
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.selection.prepared import Trained
from weightpager.compiler.training.masks import Masks
from weightpager.compiler.training.sparse_products import SparseProducts
from weightpager.errors import WeightpagerError
from weightpager.kernels.torch.kept_blocks import products as available
from weightpager_lab.timing import ratio

WARM = 2
"""Batches of each task before any clock counts."""

Way = Callable[[str, Batch], Tensor]


@dataclass(frozen=True)
class Row:
    """One pair of ways.

    Attributes:
        domain: whose tasks and model.
        density: share of the blocks that each task keeps.
        teacher: whether the dense model's answers are part of the loss.
        threads: that torch computes with.
        tokens: in a batch, the mean.
        whole_seconds, kept_seconds: of a step, the mean over the batches.
        faster, quarters: the median over the batches of whole / kept, and its quartiles.
        loss_apart: the largest difference of a batch's two losses, as a share of the loss.
        cpu, command, commit: where the row comes from.
    """

    domain: str
    density: float
    teacher: bool
    threads: int
    tokens: float
    whole_seconds: float
    kept_seconds: float
    faster: float
    quarters: tuple[float, float]
    loss_apart: float
    command: str
    commit: str
    cpu: str = ""


def main(
    json: Annotated[Path, typer.Option(help="File of rows; this one is added.")],
    domain: Annotated[Domain, typer.Option(help="A: MiniLM and texts; D: SmolLM2 and tasks that write.")] = "D",
    density: Annotated[float, typer.Option(help="Share of the blocks that a task keeps.")] = 0.5,
    teacher: Annotated[bool, typer.Option(help="Whether the dense model teaches.")] = True,
    rounds: Annotated[int, typer.Option(help="Batches of each task.")] = 3,
) -> None:
    """Measure steps of recovery in pairs."""
    effort = replace(effort_of(domain, quick=True), base_steps=1, eval_items=4)
    with tempfile.TemporaryDirectory() as folder, progress() as told:
        found = train_and_measure_dense(
            task_file(domain, effort, 0), CompileRun(told, Journal(Path(folder), "training"))
        )
    lesson = _lesson(found, density, 0.5 if teacher else 0.0, effort.batch)
    pairs = list(_pairs(lesson, rounds))
    row = _row(pairs, domain, density, teacher=teacher)
    typer.echo(
        f"{row.tokens:.0f} tokens a step: {row.tokens / row.whole_seconds:.0f} tokens/s with whole weights, "
        f"{row.tokens / row.kept_seconds:.0f} with kept blocks, {row.faster:.2f} x "
        f"({row.quarters[0]:.2f} to {row.quarters[1]:.2f})"
    )
    row_file.write(json, [*row_file.read(json, Row), row])


def _lesson(found: Trained, density: float, distillation: float, batch: int) -> Lesson:
    source, random = found.source, np.random.default_rng(0)
    keep = {info.name: random.random((info.grid.count, len(source.models))) < density for info in source.paged}
    spec = effort_of("D", quick=True).finetune(0).model_copy(update={"distillation": distillation, "batch": batch})
    sparse = replace(
        source,
        models=copy.deepcopy(source.models),
        task_file=source.task_file.model_copy(update={"dtype": "int4", "recover": spec}),
    )
    return Lesson(source, sparse, Masks(tuple(source.models), keep), found.data, spec)


@dataclass(frozen=True)
class _Pair:
    tokens: int
    whole: float
    kept: float
    loss_apart: float


def _pairs(lesson: Lesson, rounds: int) -> Iterator[_Pair]:
    """Each batch through both ways, the first one in turns."""
    tasks = list(lesson.sparse.models)
    shared = {info.name: lesson.sparse.linear(tasks[0], info.name).weight for info in lesson.sparse.paged}
    rounding = Rounding.of(lesson.sparse, shared, 1)
    assert rounding is not None
    rounding.update(0)
    if not available():
        raise WeightpagerError("expected the native module, found none: install a wheel, or build it")
    products = SparseProducts(lesson.sparse, lesson.masks, rounding)  # whether they are faster is the question
    ways: list[Way] = [
        lambda task, batch: lesson.error(task, batch, rounding),
        lambda task, batch: lesson.error_of(task, products.logits(task, batch), batch),
    ]
    turns = alternating_batches(lesson.data, tasks, lesson.spec.batch, lesson.spec.seed)
    for number, (task, batch) in enumerate(islice(turns, (WARM + rounds) * len(tasks))):
        order = (0, 1) if number % 2 else (1, 0)
        found = {way: _step(lesson, ways[way], task, batch) for way in order}
        if number >= WARM * len(tasks):
            (whole, loss), (kept, other) = found[0], found[1]
            tokens = batch.tokens
            assert tokens is not None
            yield _Pair(int(tokens.sum()), whole, kept, abs(loss - other) / abs(loss))


def _step(lesson: Lesson, way: Way, task: str, batch: Batch) -> tuple[float, float]:
    """Seconds of the process's that a step takes, and its loss."""
    for parameter in lesson.sparse.models[task].parameters():
        parameter.grad = None
    start = time.process_time()
    error = way(task, batch)
    error.backward()  # type: ignore[no-untyped-call]
    return time.process_time() - start, error.item()


def _row(pairs: list[_Pair], domain: str, density: float, *, teacher: bool) -> Row:
    faster = ratio([pair.whole for pair in pairs], [pair.kept for pair in pairs])
    return Row(
        domain=domain,
        density=density,
        teacher=teacher,
        threads=torch.get_num_threads(),
        tokens=statistics.fmean(pair.tokens for pair in pairs),
        whole_seconds=statistics.fmean(pair.whole for pair in pairs),
        kept_seconds=statistics.fmean(pair.kept for pair in pairs),
        faster=round(faster.median, 3),
        quarters=(round(faster.low, 3), round(faster.high, 3)),
        loss_apart=max(pair.loss_apart for pair in pairs),
        **row_file.origin("benchmarks.compiling.training"),
    )


if __name__ == "__main__":
    typer.run(main)

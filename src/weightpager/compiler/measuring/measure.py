"""Measuring a bundle the way a device runs it: every score comes from the engine's paged kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from weightpager.answers.evaluate import evaluate
from weightpager.answers.score import Score
from weightpager.backends.torch.model.architecture import image_reader
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.report.compile_report import TaskScore, has_report, read_report
from weightpager.compiler import data
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.data.splits import EVAL_BATCH, TaskData
from weightpager.compiler.measuring.report import task_score
from weightpager.compiler.model.evaluate import arrays
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.errors import CompileError
from weightpager.kernels.torch import calls
from weightpager.machine.paths import has_directory, has_file
from weightpager.progress import Progress


def measure(engine: Engine, tasks: Iterable[str], progress: Progress) -> list[TaskScore]:
    """Measure tasks on the held-out data that the bundle names; all of it is read before any task is measured.

    Raises:
        CompileError: a task names no data, or its file isn't there or can't be read.
        UnknownTaskError: the bundle has no such task.
    """
    reads = image_reader(engine.bundle) if engine.bundle.takes_images else engine.tokenizer()
    entries = [engine.bundle.task(name) for name in tasks]
    held_out = [_held_out(entry, reads) for entry in entries]
    scores = []
    for entry, (batches, unchanged) in zip(entries, held_out, strict=True):
        score = task_score(engine.bundle, entry.name, score_task(engine, entry.name, batches, progress))
        scores.append(_beside_dense(engine.bundle, score) if unchanged else score.model_copy(update={"dense": None}))
    return scores


def _beside_dense(bundle: Bundle, score: TaskScore) -> TaskScore:
    """With the intervals of the compile, which had the dense model, as far as they still hold."""
    before = {task.name: task for task in read_report(bundle).tasks} if has_report(bundle) else {}
    known = before.get(score.name)
    if known is None:
        return score
    lost = known.loss_interval if known.sparse == score.sparse else None
    return score.model_copy(update={"dense_interval": known.dense_interval, "loss_interval": lost})


def measure_written(root: Path, data: Mapping[str, TaskData], progress: Progress) -> tuple[Bundle, dict[str, Score]]:
    """The bundle that has been written, and its score for each task on its held-out data."""
    bundle = Bundle.open(root)
    with Engine(bundle, EngineConfig()) as engine:
        return bundle, {name: score_task(engine, name, of_task.held_out(), progress) for name, of_task in data.items()}


def score_task(engine: Engine, name: str, batches: Sequence[Batch], progress: Progress) -> Score:
    """One task's score through the engine."""
    entry = engine.bundle.task(name)
    before = calls()
    with engine.task(name):
        told = partial(progress, f"measure {name}")
        score = evaluate(engine.model(name).logits, arrays(batches, told), entry.kind)
    if engine.report().backend == "torch" and calls() == before:
        raise CompileError(f"{name}: expected the paged kernel to run, but it did not")
    return score


def _held_out(entry: TaskEntry, reads: object) -> tuple[Sequence[Batch], bool]:
    """A task's evaluation batches, and whether its file is the one that the dense model was measured on."""
    stated = entry.eval
    path = Path(stated.file if stated is not None else "")
    if stated is not None and not (has_file(path) or (entry.takes_images and has_directory(path))):
        raise CompileError(
            f"{entry.name}: the held-out data {path} is not on this machine, or you may not look there; "
            "put it there and try again"
        )
    batches = data.load_eval(entry, path, reads, EVAL_BATCH)
    if stated is None:
        return batches, False
    found = data.fingerprint(path, entry.name, entry.kind, (stated.text, stated.label))
    return batches, found == stated.blake3

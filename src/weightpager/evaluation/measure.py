"""A bundle's scores through the engine, on the held-out data that the bundle names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from weightpager.answers.evaluate import evaluate
from weightpager.answers.kinds import kind_of
from weightpager.answers.score import Score
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.held_out_places import held_out_file
from weightpager.bundle.report.compile_report import OtherScore, TaskScore, has_report, read_report
from weightpager.engine import Engine
from weightpager.errors import CompileError
from weightpager.evaluation import intervals
from weightpager.machine.paths import has_directory, has_file
from weightpager.progress import Progress, StepProgress, counted
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer
from weightpager.task_data.batches import EVAL_BATCH, Labelled
from weightpager.task_data.held_out import fingerprint, read_held_out

NOWHERE: Mapping[str, Path] = MappingProxyType({})
"""All data is where the bundle says."""


def measure(
    engine: Engine, tasks: Iterable[str], progress: Progress, moved: Mapping[str, Path] = NOWHERE
) -> list[TaskScore]:
    """Measure tasks on the held-out data that the bundle names; all of it is read before any task is measured.

    Args:
        engine: that has the tasks.
        tasks: their names.
        progress: of each task's batches.
        moved: where tasks' data is, of those whose data isn't where the bundle says.

    Raises:
        CompileError: a task names no data, or its file isn't there or can't be read.
        BundleFormatError: the tokenizer knows words of the data that the model doesn't.
        UnknownTaskError: the bundle has no such task.
        ConfigError: the data needs a package that isn't installed.
    """
    reader, vocab_size = engine.reader(), engine.limits.vocab_size
    entries = [engine.bundle.task(name) for name in tasks]
    held_out = [_held_out(engine.bundle, entry, moved.get(entry.name), reader, vocab_size) for entry in entries]
    scores = []
    for entry, (batches, unchanged) in zip(entries, held_out, strict=True):
        told = partial(progress, f"measure {entry.name}")
        score = task_score(engine.bundle, entry.name, score_task(engine, entry.name, batches, told))
        scores.append(_beside_dense(engine.bundle, score) if unchanged else score.model_copy(update={"dense": None}))
    return scores


def score_task(engine: Engine, name: str, batches: Sequence[Labelled], progress: StepProgress) -> Score:
    """One task's score through the engine."""
    entry = engine.bundle.task(name)
    with engine.task(name):
        answer = kind_of(entry.kind).answering(engine.model(name), engine.reader(), entry.generation)
        metrics = () if entry.generation is None else entry.generation.metrics
        return evaluate(answer, counted(batches, progress), entry.kind, metrics)


def task_score(bundle: Bundle, name: str, found: Score, dense: Score | None = None) -> TaskScore:
    """A task's line of a report; ``dense`` is the dense model's score on the same items, if there is one."""
    entry = bundle.task(name)
    return TaskScore(
        name=name,
        metric=found.metric,
        dense=None if entry.dense is None else entry.dense.value,
        sparse=found.value,
        density=len(bundle.kept_locations(name)) * bundle.block_bytes / bundle.dense_bytes,
        items=found.items,
        texts=len(found.outcomes.counts),
        dense_interval=None if dense is None else intervals.of_score(dense),
        sparse_interval=intervals.of_score(found),
        loss_interval=None if dense is None else intervals.of_gap(dense, found, dense),
        others=[
            OtherScore(metric=metric, dense=None if dense is None else dense.others[metric], sparse=value)
            for metric, value in found.others.items()
        ],
    )


def _beside_dense(bundle: Bundle, score: TaskScore) -> TaskScore:
    """A score with the intervals that the compile, which had the dense model, has found, as far as they still hold."""
    before = {task.name: task for task in read_report(bundle).tasks} if has_report(bundle) else {}
    known = before.get(score.name)
    if known is None:
        return score
    lost = known.loss_interval if known.sparse == score.sparse else None
    dense = {other.metric: other.dense for other in known.others}
    others = [other.model_copy(update={"dense": dense.get(other.metric)}) for other in score.others]
    return score.model_copy(update={"dense_interval": known.dense_interval, "loss_interval": lost, "others": others})


def _held_out(
    bundle: Bundle, entry: TaskEntry, moved: Path | None, reader: Tokenizer | ImageReader, vocab_size: int
) -> tuple[Sequence[Labelled], bool]:
    """A task's batches, and whether its file is the one that the dense model was measured on."""
    stated = entry.eval
    if stated is None:
        raise CompileError(f"{entry.name}: the bundle names no held-out data for this task")
    path = moved or held_out_file(bundle, stated)
    if path is None or not (has_file(path) or (entry.takes_images and has_directory(path))):
        raise CompileError(
            f"{entry.name}: the held-out data {moved or stated.file} is not on this machine, or you may not look "
            "there; put it beside the bundle or into the working directory, or say where it is: "
            f"'weightpager eval --data {entry.name}=FILE'"
        )
    batches = read_held_out(entry, path, reader, vocab_size, EVAL_BATCH)
    return batches, fingerprint(path, entry.name, entry.kind, (stated.text, stated.label)) == stated.blake3

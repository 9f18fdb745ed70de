"""A task's metric on held-out data, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import NormalDist
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.kinds import kind_of
from weightpager.answers.score import Outcomes, Score, evaluate
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.held_out_places import held_out_file
from weightpager.bundle.report.compile_report import CONFIDENCE, UNKNOWN, OtherScore, TaskScore, has_report, read_report
from weightpager.engine import Engine
from weightpager.errors import CompileError
from weightpager.machine.paths import has_directory, has_file
from weightpager.progress import Progress, StepProgress, counted
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer
from weightpager.task_data.batches import EVAL_BATCH, Labelled
from weightpager.task_data.held_out import fingerprint, read_held_out

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000

FEWEST = 6
"""Items that a bootstrap needs, the two made-up ones included; of perplexity, which has none, six real ones.

Five all point the same way by chance in more than one of twenty cases.
"""

_HOPELESS = 300.0
"""Nats per token above which perplexities are equally bad; twice that can still be divided."""

_AT_ONCE = 1 << 20
"""Drawn items of one sample in memory at most."""


def of_score(score: Score) -> tuple[float, float]:
    """The interval of a metric: Wilson's where each item has one answer, else by bootstrap over texts or windows.

    Words of one text hang together, so that they are drawn together.
    """
    outcomes = score.outcomes
    if score.metric == "perplexity":
        return _bootstrap(_perplexity, outcomes.sums, _counts(outcomes))
    if score.metric == "accuracy":
        return _wilson(round(score.value * score.items), score.items)
    return _bootstrap(_ratio, np.append(outcomes.sums, [1.0, 0.0]), np.append(_counts(outcomes), [1.0, 1.0]))


def of_gap(ours: Score, other: Score, dense: Score) -> tuple[float, float]:
    """What another model loses more than ours, by a paired bootstrap over the items that all were measured on.

    In points; in percent of the dense perplexity. Right and wrong answers get two made-up items more, on each of which
    one of the two alone is right: as many differences all in one direction as a sign test asks for then tell two models
    apart, and models that always agree aren't equal for sure (Agresti and Min 2005).
    """
    same = len({len(score.outcomes.counts) for score in (ours, other, dense)}) == 1
    if not same or len(ours.outcomes.counts) == 0:
        return UNKNOWN
    counts = _counts(ours.outcomes)
    if not ours.higher_is_better:
        return _bootstrap(_risen, *(score.outcomes.sums for score in (ours, other, dense)), counts)
    more = np.append(ours.outcomes.sums - other.outcomes.sums, [1.0, -1.0])
    return _bootstrap(partial(_ratio, scale=100.0), more, np.append(counts, [1.0, 1.0]))


def _bootstrap(statistic: Callable[..., Any], *samples: Floats) -> tuple[float, float]:
    """The interval of a statistic of drawn items. The last sample says how much each item counts; 0 leaves it out."""
    counting = samples[-1] > 0
    drawn = tuple(sample[counting] for sample in samples)
    items = len(drawn[-1])
    if items < FEWEST or not all(np.isfinite(sample).all() for sample in drawn):
        return UNKNOWN
    generator, at_once = np.random.default_rng(0), max(1, _AT_ONCE // items)
    resampled: list[Floats] = []
    for start in range(0, RESAMPLES, at_once):
        indices = generator.integers(0, items, (min(at_once, RESAMPLES - start), items))
        resampled.append(statistic(*(sample[indices] for sample in drawn), axis=-1))
    outside = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(np.concatenate(resampled), [outside, 100 - outside])
    return float(low), float(high)


def _wilson(right: int, items: int) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927)."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    wide = z * math.sqrt(z * z + 4 * right * (items - right) / items)
    low, high = (2 * right + z * z - wide, 2 * right + z * z + wide)
    whole = 2 * (items + z * z)
    return (low / whole if right else 0.0), (high / whole if right < items else 1.0)


def _ratio(sums: Floats, counts: Floats, axis: int, scale: float = 1.0) -> Floats:
    return np.asarray(scale * sums.sum(axis) / counts.sum(axis))


def _perplexity(nats: Floats, counts: Floats, axis: int) -> Floats:
    return np.exp(np.minimum(_ratio(nats, counts, axis), _HOPELESS))


def _risen(ours: Floats, other: Floats, dense: Floats, counts: Floats, axis: int) -> Floats:
    """Percent of the dense perplexity that another one's is above ours."""
    first, second, start = (_perplexity(nats, counts, axis) for nats in (ours, other, dense))
    return np.asarray(100 * (second - first) / start)


def _counts(found: Outcomes) -> Floats:
    return found.counts.astype(np.float64)


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
        dense_interval=None if dense is None else of_score(dense),
        sparse_interval=of_score(found),
        loss_interval=None if dense is None else of_gap(dense, found, dense),
        others=[
            OtherScore(metric=metric, dense=None if dense is None else dense.others[metric], sparse=value)
            for metric, value in found.others.items()
        ],
    )


def _beside_dense(bundle: Bundle, score: TaskScore) -> TaskScore:
    """A score with the intervals that the compile, which had the dense model, has found, as far as they still hold."""
    report = read_report(bundle) if has_report(bundle) else None
    before = {} if report is None else {task.name: task for task in (*report.tasks, *report.added)}
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
    columns, among_words = (stated.text, stated.label), bundle.pictures is not None
    return batches, fingerprint(path, entry.name, entry.kind, columns, among_words=among_words) == stated.blake3

"""The compiler's stages, from top to bottom: model + tasks → bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightpager.bundle import Bundle, BundleWriter, writing
from weightpager.bundle.format.names import REPORT
from weightpager.bundle.report.compile_report import CompileReport, FrontierPoint
from weightpager.bundle.report.overlap import mean_overlap, overlap
from weightpager.bundle.report.paged_share import paged_share
from weightpager.compiler import task_file as task_files
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.estimates.time_left import WholeProgress
from weightpager.compiler.grow import grow
from weightpager.compiler.measuring.comparison import Control, control_scores, task_score
from weightpager.compiler.measuring.controls import compared, measure_controls
from weightpager.compiler.measuring.measure import measure_all
from weightpager.compiler.model.masks import Keep, Masks
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import Packing, over_read, pack, pack_best
from weightpager.compiler.packing.stored_blocks import StoredBlocks
from weightpager.compiler.packing.write import BundlePlan, write_bundle
from weightpager.compiler.prepare import prepare
from weightpager.compiler.recovery.recover import recover
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.identities import compile_identity
from weightpager.compiler.resume.journal import Journal, kept_beside
from weightpager.compiler.resume.stage_times import Clock
from weightpager.compiler.selection.block_choice import choose_alignment, choose_blocks, transitions_of
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import TaskFile
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.page_dtype import block_bytes
from weightpager.progress import Progress, silent
from weightpager.store import StorageModel
from weightpager.trace_file import read_trace
from weightpager.transitions import Transitions

TaskFileLike = str | Path | TaskFile | Mapping[str, Any]


def compile(  # noqa: A001 - wp.compile is what users expect
    tasks: TaskFileLike,
    out: str | Path,
    *,
    base: str | Path | None = None,
    force: bool = False,
    cache: bool = True,
    progress: Progress = silent,
) -> Bundle:
    """Compile a model and its tasks into a bundle.

    The bundle appears at ``out`` whole or not at all, whatever stops the compile. What has been trained is kept beside
    it until then: the same compile, started again, goes on from there. The trained dense model and what was measured
    on it lie in the user's cache, for compiles that differ in sparsity, alignment, dtype or recovery only.

    Args:
        tasks: a task file's path, its parsed form, or its content as a mapping.
        out: bundle directory to create.
        base: bundle that the tasks are added to, whose own tasks stay bit for bit; None starts a new one.
        force: replace an existing bundle.
        cache: whether to use the cache.
        progress: told (stage, steps done, steps in all); and of `WHOLE` the seconds so far and in all, as estimated.

    Raises:
        ConfigError: the task file, ``out`` or a variable of the environment is wrong.
        CompileError: the model or the data can't be compiled, the storage is full, or another compile into the same
            bundle is going on.
        BundleError, StoreError: the base can't be used.
        CompileInterrupted: Ctrl-C; its text says what is kept.
    """
    task_file, shared = _parse(tasks), Cache.of_user() if cache else Cache.none()
    whole = WholeProgress(progress)
    if base is None:
        _check_trace(task_file, ())
        journal = Journal(kept_beside(out), compile_identity(task_file))
        with _telling(journal, out), journal.held(), writing(out, force=force) as writer:
            build(writer, prepare(task_file, whole, journal, cache=shared), whole, journal)
    else:
        start = BaseBundle.open(base)
        task_file = start.settle(task_file)
        _check_trace(task_file, tuple(start.bundle.tasks))
        journal = Journal(kept_beside(out), f"{compile_identity(task_file)} {start.identity()}")
        with _telling(journal, out), journal.held(), writing(out, force=force) as writer:
            grow(writer, start, prepare(task_file, whole, journal, start, shared), journal, whole)
    return Bundle.open(out)


class CompileInterrupted(KeyboardInterrupt):
    """Ctrl-C during a compile; its text says what is kept and what isn't."""


@contextmanager
def _telling(journal: Journal, out: str | Path) -> Iterator[None]:
    """Turn Ctrl-C into a `CompileInterrupted`."""
    try:
        yield
    except KeyboardInterrupt as error:
        kept, earlier = journal.standing(), any(kept_beside(out).rglob("*.safetensors"))
        if not kept and earlier:
            raise CompileInterrupted(f"interrupted; what earlier runs have kept stays in {kept_beside(out)}") from error
        if not kept:
            raise CompileInterrupted("interrupted; nothing was trained that could be kept: begin again") from error
        raise CompileInterrupted(
            f"interrupted; kept in {kept_beside(out)}: {', '.join(kept)}. The same command goes on from there; what is "
            "not named is done again"
        ) from error


def build(
    writer: BundleWriter,
    prepared: Prepared,
    progress: Progress = silent,
    journal: Journal | None = None,
) -> CompileReport:
    """Align, recover, pack, write, measure what was written, and measure what else could do the job.

    Args:
        writer: where the bundle goes.
        prepared: the dense model and its saliency.
        progress: told (stage, steps done, steps in all).
        journal: where recovery notes how far it is.
    """
    journal = journal or Journal.none()
    clock = prepared.clock.copy()
    with clock.stage("align"):
        prepared, frontier = choose_alignment(prepared, progress)
        masks, gap = choose_blocks(prepared)
    with clock.stage("recover", journal):
        weights = recover(prepared.source, prepared.data, masks, journal, progress)
    with clock.stage("controls", journal):
        controls = measure_controls(prepared, journal, progress)
    return assemble(writer, prepared, masks, weights, gap, clock, progress, controls, frontier)


def assemble(
    writer: BundleWriter,
    prepared: Prepared,
    masks: Masks,
    weights: TaskWeights,
    gap: float,
    clock: Clock,
    progress: Progress,
    controls: Sequence[Control] = (),
    frontier: Sequence[FrontierPoint] = (),
) -> CompileReport:
    """Pack, write, and measure what was written.

    Args:
        writer: where the bundle goes.
        prepared: the tasks, their data, and the dense scores to compare with.
        masks: who keeps what.
        weights: the values.
        gap: the alignment's duality gap.
        clock: of the stages so far.
        progress: told (stage, steps done, steps in all).
        controls: that have been measured.
        frontier: strengths that were tried to find the alignment.
    """
    task_file = prepared.source.task_file
    transitions = transitions_of(task_file)
    with clock.stage("pack"):
        stored, packing = _pack(weights, masks.keep, transitions)
    with clock.stage("write"):
        strength = task_file.alignment if np.isfinite(task_file.alignment) else None
        plan = BundlePlan(
            task_file.dtype,
            weights,
            masks.keep,
            packing,
            prepared.entries(),
            transitions,
            strength,
            prepared.permutations,
        )
        write_bundle(writer, plan)
    with clock.stage("measure sparse"):
        bundle = Bundle.open(writer.root)
        with Engine(bundle, EngineConfig()) as engine:
            scores = measure_all(engine, prepared.data, progress)
    share = paged_share(bundle)
    report = CompileReport(
        tasks=[task_score(bundle, name, score, prepared.dense[name]) for name, score in scores.items()],
        mean_overlap=mean_overlap(overlap(bundle)),
        duality_gap=gap,
        alignment=strength,
        frontier=list(frontier),
        page_bytes=packing.page_bytes,
        page_fill=packing.fill,
        over_read=dict(zip(task_file.tasks, over_read(packing, stored, len(task_file.tasks)).tolist(), strict=True)),
        seconds=clock.seconds,
        peak_memory=clock.peak_memory,
        threads=torch.get_num_threads(),
        controls=control_scores(controls, scores, prepared.dense),
        tied={name: list(others) for name, others in prepared.source.tied.items()},
        evenness=prepared.evenness,
        compare=compared(task_file, prepared.data),
        recover=task_file.recover.method,
        paged_share=share.share,
        not_paged=dict(share.others),
    )
    writer.add(REPORT, lambda file: file.write(report.dump()))
    writer.finish(bundle.manifest)
    return report


def _parse(tasks: TaskFileLike) -> TaskFile:
    if isinstance(tasks, TaskFile):
        return tasks
    return task_files.from_dict(tasks) if isinstance(tasks, Mapping) else task_files.load(tasks)


def _check_trace(task_file: TaskFile, old: tuple[str, ...]) -> None:
    """Read the trace, if there is one, before anything takes long."""
    if task_file.transitions is not None:
        read_trace(task_file.transitions, (*old, *task_file.tasks))


def _pack(weights: TaskWeights, keep: Keep, transitions: Transitions) -> tuple[list[StoredBlocks], Packing]:
    task_file, paged = weights.source.task_file, weights.source.paged
    stored = [StoredBlocks.of(info.layer, keep[info.name], weights.versions(info)) for info in paged]
    size = block_bytes(task_file.block, task_file.dtype)
    if task_file.page is not None:
        return stored, pack(stored, task_file.page, size)
    return stored, pack_best(stored, size, transitions.switch_rate(), StorageModel())

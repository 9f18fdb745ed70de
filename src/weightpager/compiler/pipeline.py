"""The compiler's stages, from top to bottom: model + tasks → bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightpager.bundle import Bundle, BundleWriter, writing
from weightpager.bundle.format.names import REPORT
from weightpager.bundle.report.compile_report import CompileReport, FitTrial, FrontierPoint
from weightpager.compiler.added import add_tasks
from weightpager.compiler.base_bundle import BaseBundle
from weightpager.compiler.candidates import choose_candidate
from weightpager.compiler.controls import Control, compared, control_scores, measure_controls
from weightpager.compiler.fit import check_fit, fit_of
from weightpager.compiler.growth import grow
from weightpager.compiler.keep import Kept, choose_kept, keep_of
from weightpager.compiler.measure import common_fields, measure_written
from weightpager.compiler.model.gguf_model import with_directory
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.plan import plan_bundle
from weightpager.compiler.packing.write import write_bundle
from weightpager.compiler.prepare import prepare
from weightpager.compiler.recovery.recover import recover
from weightpager.compiler.resume.cache import UNFINISHED, Cache
from weightpager.compiler.resume.identities import compile_identity
from weightpager.compiler.resume.journal import LOCAL, CompileRun, Journal, Workers, journal_folder
from weightpager.compiler.selection.experts import check_left
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import TaskFile, from_dict, load
from weightpager.compiler.time_left import WholeProgress
from weightpager.compiler.training.masks import Masks
from weightpager.progress import Progress, silent


def compile(  # noqa: A001 - wp.compile is what users expect
    tasks: str | Path | TaskFile | Mapping[str, Any],
    out: str | Path,
    *,
    base: str | Path | None = None,
    force: bool = False,
    cache: bool = True,
    progress: Progress = silent,
    workers: Workers = LOCAL,
) -> Bundle:
    """Compile a model and its tasks into a bundle.

    The bundle appears at ``out`` whole or not at all, whatever stops the compile. What has been trained is kept beside
    it until then: the same compile, started again, goes on from there. The trained dense model and what was measured
    on it lie in the user's cache, for compiles that differ in sparsity, alignment, dtype or recovery only.

    Args:
        tasks: a task file's path, its parsed form, or its content as a mapping. Paths in a mapping start from the
            working directory.
        out: bundle directory to create.
        base: bundle that the tasks are added to, whose own tasks stay bit for bit; None starts a new one.
        force: replace an existing bundle.
        cache: whether to use the user's cache.
        progress: told (stage, steps done, steps in all); and of the stage ``"whole compile"`` the seconds so far and in
            all, as estimated.
        workers: do what is done for each task by itself, such as those of a Ray cluster; this process unless stated.
            The bundle doesn't depend on who does it.

    Returns:
        The new bundle, opened.

    Raises:
        ConfigError: the task file, ``out`` or a variable of the environment is wrong.
        CompileError: the model or the data can't be compiled, the storage is full, or another compile into the same
            bundle is going on.
        BundleError, StoreError: the base can't be used, or was replaced meanwhile.
        CompileInterrupted: Ctrl-C. It is a `KeyboardInterrupt`, whose text says what is kept.
    """
    task_file, shared = with_directory(_parse(tasks)), Cache.of_user() if cache else Cache.none()
    # What a link leads to stays where it is when `pull` makes the link lead elsewhere.
    start = None if base is None else BaseBundle.open(os.path.realpath(base))
    if start is not None:
        start.refuse_unsuited(task_file)
        task_file = start.with_base_settings(task_file)
    identity = compile_identity(task_file) + ("" if start is None else f" {start.identity()}")
    whole = WholeProgress(progress)
    run = CompileRun(whole, Journal(journal_folder(out), identity), whole.expect, workers=workers)
    origin = None if start is None else start.bundle
    with (
        telling(run.journal),
        run.journal.held(),
        writing(out, force=force, origin=origin) as writer,
    ):
        prepared = prepare(task_file, run, start, shared)
        writer.remembers = shared.keeps
        if start is None:
            build(writer, prepared, run)
        else:
            grow(writer, start, prepared, run)
        if prepared.added:
            add_tasks(writer, prepared.added, run)
    return Bundle.open(out)


class CompileInterrupted(KeyboardInterrupt):
    """Ctrl-C during a compile; its text says what is kept and what isn't."""


@contextmanager
def telling(journal: Journal) -> Iterator[None]:
    """Turn Ctrl-C into a `CompileInterrupted`, which says what the journal keeps."""
    try:
        yield
    except KeyboardInterrupt as error:
        kept, folder = journal.resumable(), journal.folder
        if kept:
            text = f"kept in {folder}: {', '.join(kept)}. The same command goes on from there; what is "
            text += "not named is done again"
        elif folder is not None and any(
            not path.parent.name.startswith(UNFINISHED) for path in folder.rglob("*.safetensors")
        ):
            text = f"what earlier runs have kept stays in {folder}"
        else:
            text = "nothing was trained that could be kept: begin again"
        raise CompileInterrupted(f"interrupted; {text}") from error


@dataclass(frozen=True)
class Sparse:
    """What has been found for the sparse tasks, before it is packed.

    Attributes:
        frontier: the strengths that were tried.
        kept: what ``keep`` led to; None where it isn't stated.
        trials: what was tried to use a budget.
    """

    masks: Masks
    weights: TaskWeights
    gap: float
    frontier: Sequence[FrontierPoint] = ()
    controls: Sequence[Control] = ()
    kept: Kept | None = None
    trials: Sequence[FitTrial] = ()


def build(writer: BundleWriter, prepared: Prepared, run: CompileRun | None = None) -> CompileReport:
    """Align, recover, measure what else could do the job, pack, write, and measure what was written."""
    run = run or CompileRun()
    found = choose_candidate(prepared, run)
    with run.stage("align", one_step=True):
        kept = choose_kept(found.candidate.prepared, run) if prepared.task_file.keep is not None else None
        selected = kept or found.candidate
        prepared, chosen = selected.prepared, selected.chosen
        check_fit(prepared, chosen.masks, run)
        check_left(prepared.source, chosen.masks)
    with run.stage("recover"):
        workers = run.workers_on(prepared.source)
        weights = recover(prepared.source, prepared.data, chosen.masks, found.journal, run.progress, workers)
    with run.stage("controls"):
        controls = measure_controls(prepared, run)
    frontier, trials = found.candidate.frontier, found.trials
    return assemble(writer, prepared, Sparse(chosen.masks, weights, chosen.gap, frontier, controls, kept, trials), run)


def assemble(writer: BundleWriter, prepared: Prepared, sparse: Sparse, run: CompileRun) -> CompileReport:
    """Pack, write, and measure what was written."""
    task_file = prepared.task_file
    with run.stage("pack", one_step=True):
        plan = plan_bundle(prepared, sparse.weights, sparse.masks.keep)
    with run.stage("write", one_step=True):
        without_graph = write_bundle(writer, plan)
    with run.stage("measure sparse"):
        written = measure_written(writer.root, prepared.data, run.progress, run.workers)
        keep = None if sparse.kept is None else keep_of(sparse.kept, writer.root, run)
    fields = common_fields(written, prepared, run) | {
        "duality_gap": sparse.gap,
        "alignment": plan.alignment,
        "frontier": list(sparse.frontier),
        "controls": control_scores(sparse.controls, written.scores, prepared.dense),
        "compare": compared(task_file, prepared.data),
        "recover": task_file.recover.method,
        "fit": fit_of(prepared, written.bundle, run, sparse.trials),
        "keep": keep,
        "without_graph": without_graph,
    }
    report = CompileReport(**fields)
    writer.put(REPORT, report.dump())
    writer.finish(written.bundle.manifest)  # once more: it lists the report, for which the bundle had to be read
    return report


def _parse(tasks: str | Path | TaskFile | Mapping[str, Any]) -> TaskFile:
    if isinstance(tasks, TaskFile):
        return tasks
    return from_dict(tasks) if isinstance(tasks, Mapping) else load(tasks)

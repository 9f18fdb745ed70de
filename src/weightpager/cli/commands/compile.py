"""``weightpager compile``: a model and its tasks into a bundle."""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.bundle import Bundle
from weightpager.bundle.report.advice import advise
from weightpager.bundle.report.compile_report import CompileReport, read_report
from weightpager.bundle.report.page_statistics import paged_share
from weightpager.cli import output
from weightpager.cli.commands import inspect
from weightpager.cli.options import Force, Json, Out, Quiet, extra
from weightpager.cli.output import notes
from weightpager.cli.progress import progress

if TYPE_CHECKING:
    from weightpager.compiler.resume.journal import Workers


def compile_(
    tasks: Annotated[
        Path,
        typer.Argument(
            metavar="TASKS.yaml",
            help="Task file; or a model's directory or GGUF file, for one task without data.",
            show_default=False,
        ),
    ],
    out: Out,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base", metavar="BUNDLE", help="Add the tasks to this bundle, whose own tasks stay bit for bit."
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="The most that weights may take in memory, such as 5MiB. How many blocks are kept, in which dtype and "
            "with what of a task's own follows from it.",
        ),
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="How to find what does best in --fit: quick goes by rules; normal, which takes up to twice as long, "
            "trains several candidates shortly and two of them wholly; thorough trains more.",
        ),
    ] = None,
    max_switch: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Align so far that an average switch loads at most this, such as 512KiB."),
    ] = None,
    accuracy_loss: Annotated[
        float | None, typer.Option(metavar="POINTS", help="Align as far as it costs at most this, such as 0.5.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="Measure beside the bundle: none; dense, the dense model quantised; or all, one shared mask too. "
            "Without finetune dense measures the mask as well.",
        ),
    ] = None,
    no_cache: Annotated[
        bool,
        typer.Option(
            "--no-cache", help="Train and calibrate anew, and keep nothing for other compiles; see `weightpager cache`."
        ),
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Spread what is done for each task over a Ray cluster: HOST:PORT of the cluster's head, or auto: the "
            "cluster that `ray start` started here, or, if there is none, a temporary one on this machine. Needs "
            "`weightpager[ray]`.",
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a model and its tasks into a bundle. Needs `weightpager[compile]`.

    Ctrl-C keeps what has been trained: the same command goes on from there. A model in place of the task file gets one
    task, `chat`, which keeps all blocks; `weightpager add` adds others.

    Example: `weightpager compile tasks.yaml --out assistant.bundle`
    """
    with extra("compile"):
        from weightpager.compiler.task_file.file import load, restated

    try:
        task_file = restated(
            load(tasks), fit=fit, effort=effort, max_switch=max_switch, accuracy_loss=accuracy_loss, compare=compare
        )
        with output.loading_torch():  # what is wrong in a task file is told before
            from weightpager.compiler.pipeline import compile as compile_bundle
            from weightpager.compiler.time_left import WHOLE
        with notes(quiet or json), _workers(ray) as workers, progress(quiet or json, WHOLE) as stages:
            bundle = compile_bundle(
                task_file, out, base=base, force=force, cache=not no_cache, progress=stages, workers=workers
            )
    except KeyboardInterrupt as error:
        kept = str(error) or "interrupted; nothing has been done yet: begin again"
        output.errors().print(kept)
        raise
    report = read_report(bundle)
    if json:
        output.print_json(report)
        return
    _print_bundle(str(out), bundle, report)
    if not quiet:
        named = shlex.quote(str(out))
        output.next_step(
            f"weightpager inspect {named} --budget SIZE, which says what fits; "
            f"then weightpager serve {named} --budget SIZE"
        )


def _workers(ray: str | None) -> AbstractContextManager[Workers]:
    """Who does what is done for each task by itself: this process, or a cluster at an address."""
    if ray is None:
        from weightpager.compiler.resume.journal import LOCAL

        return nullcontext(LOCAL)
    with extra("ray"):
        from weightpager.ray.workers import on_ray
    return on_ray(ray)


def _print_bundle(title: str, bundle: Bundle, report: CompileReport) -> None:
    _print_report(title, report)
    inspect.budget(report)
    output.say(f"paged: {paged_share(bundle).words}")
    inspect.advice(advise(bundle, report), report)
    output.say("stages: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items()))
    if report.peak_memory:
        stage, size = max(report.peak_memory.items(), key=lambda item: item[1])
        output.say(f"memory: at most {output.enough(size)} ({stage})")


def _print_report(title: str, report: CompileReport) -> None:
    inspect.scores(title, report)
    output.say(
        f"mean overlap {report.mean_overlap:.3f}, duality gap {report.duality_gap:.4%}, "
        f"alignment {'inf' if report.alignment is None else format(report.alignment, '.3g')}, "
        f"pages of {output.size(report.page_bytes)} {report.page_fill:.1%} full"
    )
    output.explain("overlap", "duality gap", "alignment")
    if report.evenness > 0:
        output.say(
            f"every weight keeps at least {report.evenness:.0%} of an even share of the budget: on training data the "
            "tasks lost less that way"
        )
    if report.growth is not None:
        _print_growth(report)


def _print_growth(report: CompileReport) -> None:
    growth = report.growth
    assert growth is not None
    wasted = ", ".join(f"{task} {report.over_read[task]:.1%}" for task in growth.tasks)
    output.say(
        f"added {', '.join(growth.tasks)}: {output.size(growth.reused_bytes)} of blocks reused, "
        f"{output.size(growth.added_bytes)} of pages added, {output.size(growth.private_bytes)} of own parameters; "
        f"over-read {wasted}; 'weightpager repack' lowers it"
    )
    output.explain("over-read")

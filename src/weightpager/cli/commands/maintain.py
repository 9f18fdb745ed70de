"""``weightpager add``, ``remove``, ``gc``, ``repack`` and ``verify``: a bundle is looked after."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.backends.verify import verify as verify_bundle
from weightpager.bundle.addition import Addition, add_task
from weightpager.bundle.garbage import collect
from weightpager.bundle.repair import Repair
from weightpager.bundle.repair import repair as repair_bundle
from weightpager.cli import output
from weightpager.cli.options import BundlePath, Force, Json, Out, Quiet, explicit_option, extra, task_names
from weightpager.cli.progress import progress
from weightpager.config import parse_size
from weightpager.errors import ConfigError

if TYPE_CHECKING:
    from weightpager.compiler.repack import PageSize, Repacked


Smaller = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Bundle directory to create. Default: BUNDLE is replaced."),
]


def gc(
    bundle: BundlePath,
    out: Smaller = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove pages that no task needs from a bundle; the other pages stay as they are.

    Without `--out` the smaller bundle takes the place of the old one: in one step where the file system can exchange
    directories, and in two on others, such as NFS.

    Example: `weightpager gc assistant.bundle`
    """
    _collect("gc", bundle, [], out, force=force, json=json, quiet=quiet)


def remove(
    bundle: BundlePath,
    tasks: Annotated[list[str], typer.Argument(metavar="TASK", help="Tasks to remove.", autocompletion=task_names)],
    out: Smaller = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove tasks from a bundle, and the pages that only they needed; the other tasks stay as they are.

    Without `--out` the smaller bundle takes the place of the old one, as with `gc`. A server drops the tasks when it
    reloads.

    Example: `weightpager remove assistant.bundle spam`
    """
    _collect("remove", bundle, tasks, out, force=force, json=json, quiet=quiet)


def _collect(
    verb: str, bundle: Path, drop: Sequence[str], out: Path | None, *, force: bool, json: bool, quiet: bool
) -> None:
    if force and out is None:
        raise ConfigError(
            f"{verb}: expected --out with --force, found --force alone; BUNDLE itself is replaced without it"
        )
    with progress(quiet or json) as stages:
        done = collect(bundle, drop, partial(stages, "write pages"), out=out, force=force)
    if json:
        output.print_json(done)
        return
    for task in done.tasks:
        output.say(f"{task} removed")
    output.say(f"{done.pages} pages removed ({output.size(done.bytes)}), {done.pages_left} left")
    if done.tasks and not quiet:
        named = shlex.quote(str(out or bundle))
        output.next_step(
            f"weightpager repack {named} --out NAME.bundle, which makes the pages that are left full again"
        )


def repack(
    bundle: BundlePath,
    out: Out,
    without: Annotated[
        list[str] | None,
        explicit_option(
            "--without", metavar="TASK", help="Leave a task out; may be given again.", autocompletion=task_names
        ),
    ] = None,
    page: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE|auto", help="Bytes of a page, such as 32KiB; auto takes the best. Default: as before."
        ),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Pack all blocks of a bundle again, so that pages are full and tasks read less that they don't use.

    Outputs don't change by a bit. A task that reads more than before is named. Needs `weightpager[compile]`.

    Example: `weightpager repack assistant.bundle --out tidy.bundle`
    """
    with extra("compile"), output.loading_torch():
        from weightpager.compiler.repack import repack as repack_bundle

    size: PageSize = None if page is None else "auto" if page == "auto" else parse_size(page, "--page")
    with progress(quiet or json) as stages:
        done = repack_bundle(
            bundle,
            out,
            without=without or (),
            page=size,
            force=force,
            progress=partial(stages, "write pages"),
        )
    if json:
        output.print_json(done)
    else:
        _print_repacked(str(out), done)


def _print_repacked(title: str, done: Repacked) -> None:
    tasks = done.after.over_read
    output.table(
        title,
        ["", "before", "after"],
        [
            [
                "pages",
                *(f"{output.size(use.bytes)} in {output.size(use.page_bytes)}" for use in (done.before, done.after)),
            ],
            ["page fill", f"{done.before.fill:.1%}", f"{done.after.fill:.1%}"],
            *([f"over-read of {task}", f"{done.before.over_read[task]:.1%}", f"{tasks[task]:.1%}"] for task in tasks),
        ],
    )
    output.explain("over-read")
    if done.worse:
        before, after = done.before.task_bytes, done.after.task_bytes
        more = ", ".join(f"{task} {output.size(after[task])} after {output.size(before[task])}" for task in done.worse)
        output.say(
            f"note: to bring these tasks in reads more than before: {more}; smaller pages (--page) make that less."
        )


_MOST_NAMED = 20


def verify(
    bundle: BundlePath,
    repair: Annotated[bool, explicit_option("--repair", help="Mend what is damaged, from another copy.")] = False,
    from_bundle: Annotated[
        Path | None,
        typer.Option("--from", metavar="OTHER", help="Bundle to mend from: a copy, or one that shares pages."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check every hash, index and bound of a bundle, and that its tasks can run; with `--repair`, mend it first.

    Mending writes only to what is damaged. It compares everything from the other bundle with its hash before it writes.
    It may be stopped at any moment and started again.

    Example: `weightpager verify assistant.bundle --repair --from backup/assistant.bundle`
    """
    if from_bundle is None:
        if repair:
            raise ConfigError("verify: expected another copy to mend from, found none; name it with --from OTHER")
        _verify(bundle, json=json, quiet=quiet)
    elif repair:
        _repair(bundle, from_bundle, json=json, quiet=quiet)
    else:
        raise ConfigError("verify: expected --repair with --from, found --from alone; add --repair to mend the bundle")


def _verify(bundle: Path, *, json: bool, quiet: bool) -> None:
    with progress(quiet or json) as stages:
        result = verify_bundle(bundle, partial(stages, "pages"))
    if json:
        output.print_json(result)
    else:
        verdict = _counted(result.problems) if result.problems else "all well"
        _print_problems(result.problems, result.advice)
        output.say(f"{bundle}: {result.files} files, {result.pages} pages: {verdict}")
    if result.problems:
        raise typer.Exit(1)


def _repair(bundle: Path, source: Path, *, json: bool, quiet: bool) -> None:
    with progress(quiet or json) as stages:
        done = repair_bundle(bundle, source, partial(stages, "mending"))
        advice: Sequence[str] = ["try another copy with --from, or copy the whole bundle again"]
        if not done.problems:
            left = verify_bundle(bundle, partial(stages, "pages"))
            done, advice = replace(done, problems=left.problems), left.advice
    if json:
        output.print_json(done)
    else:
        _print_repair(bundle, done, advice)
    if done.problems:
        raise typer.Exit(1)


def _print_repair(bundle: Path, done: Repair, advice: Sequence[str]) -> None:
    for name in done.mended_files:
        output.say(f"{name}: mended")
    for name in done.mended_frames:
        output.say(f"{name}: size and header mended")
    if done.mended_pages:
        numbers = ", ".join(map(str, done.mended_pages[:_MOST_NAMED]))
        output.say(f"pages mended: {numbers}{', …' if len(done.mended_pages) > _MOST_NAMED else ''}")
    _print_problems(done.problems, advice)
    mended = f"{len(done.mended_files)} of {done.files} files and {len(done.mended_pages)} of {done.pages} pages"
    verdict = f"{_counted(done.problems)} left" if done.problems else "all well"
    output.say(f"{bundle}: {mended} mended: {verdict}")


def _counted(problems: Sequence[str]) -> str:
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


def _print_problems(problems: Sequence[str], advice: Sequence[str]) -> None:
    for problem in problems:
        output.errors().print(problem, style="red")
    for line in advice if problems else ():
        output.hint(line)


def add(
    bundle: BundlePath,
    adapter: Annotated[
        Path | None, typer.Argument(metavar="ADAPTER", help="Directory of a LoRA adapter, as PEFT saves it.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TASK", help="Default: the name of the adapter's directory.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            "--like",
            metavar="TASK",
            help="Take this task's blocks, kind and settings. Default: the first task that keeps all blocks.",
            autocompletion=task_names,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="Message that begins conversations which bring none."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Add a task to a bundle: a LoRA adapter, a system message, or both; the other tasks stay as they are.

    This needs no compiler. An adapter must be of the model that was compiled, in safetensors. A server takes the task
    when it reloads; `remove` removes it.

    Example: `weightpager add assistant.bundle german-lora --name german`
    """
    task = name or ("" if adapter is None else Path(adapter).resolve().name)
    if not task:
        raise ConfigError("add: expected --name TASK with a system message alone, found none")
    written = add_task(bundle, Addition(task, adapter, like, system))
    size = written.low_rank_bytes(task)
    if json:
        output.print_json({"task": task, "adapter_bytes": size})
        return
    output.say(f"{task} added" + (f"; its low-rank parts take {output.size(size)} of pages" if size else ""))
    if not quiet:
        output.next_step(f"weightpager run {shlex.quote(str(bundle))} --task {task} 'TEXT'")

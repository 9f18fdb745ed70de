"""``repack``: full pages again, after tasks have come and gone."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.cli import output
from weightpager.cli.completion import task_names
from weightpager.cli.options import BundlePath, Force, Json, Out, Quiet, explicit_option, extra
from weightpager.cli.progress import progress
from weightpager.config import parse_size

if TYPE_CHECKING:
    from weightpager.compiler.repack import PageSize, Repacked


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

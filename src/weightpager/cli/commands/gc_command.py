"""``gc``: a bundle without the pages that no task needs."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from weightpager.bundle.garbage import collect
from weightpager.cli import output
from weightpager.cli.completion import task_names
from weightpager.cli.options import BundlePath, Force, Json, Quiet, explicit_option
from weightpager.cli.progress import progress
from weightpager.errors import ConfigError


def gc(
    bundle: BundlePath,
    drop: Annotated[
        list[str] | None,
        explicit_option(
            "--drop", metavar="TASK", help="Remove a task first; may be given again.", autocompletion=task_names
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Bundle directory to create. Default: BUNDLE is replaced."),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove pages that no task needs from a bundle; the other pages stay as they are.

    Without `--out` the smaller bundle takes the place of the old one: in one step where the file system can exchange
    directories, and in two on others, such as NFS.

    Example: `weightpager gc assistant.bundle --drop spam`
    """
    if force and out is None:
        raise ConfigError("gc: expected --out with --force, found --force alone; BUNDLE itself is replaced without it")
    with progress(quiet or json) as stages:
        done = collect(bundle, drop or (), partial(stages, "write pages"), out=out, force=force)
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

"""The names of a bundle's tasks, which a shell completes beside commands and options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from weightpager.bundle.reader import read_manifest
from weightpager.errors import BundleError


def task_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tasks of the bundle that the command line names, read from its manifest; none if there is no such bundle."""
    # While the value of an option is being completed, arguments are split off the line, but not yet parsed.
    bundle = ctx.params.get("bundle") or next(iter(ctx.args), None)
    if bundle is None:
        return []
    try:
        # The shell doesn't expand a line that it completes.
        manifest = read_manifest(Path(bundle).expanduser())
        return [task.name for task in manifest.tasks if task.name.startswith(incomplete)]
    except (BundleError, OSError, RuntimeError):  # RuntimeError: a ~ names a user without a home
        return []


TaskName = Annotated[
    str, typer.Option("--task", "-t", help="Name of a task.", show_default=False, autocompletion=task_names)
]
"""One task of the bundle."""

"""What a shell completes beside commands and options: the names of a bundle's tasks."""

from __future__ import annotations

from pathlib import Path

import typer

from weightpager.bundle.reader import read_manifest
from weightpager.errors import BundleError


def task_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Tasks of the bundle that the line names, from its manifest alone; none where there is no bundle to read."""
    # While an option still wants its value, arguments are only split off the line, not yet parsed.
    bundle = ctx.params.get("bundle") or next(iter(ctx.args), None)
    if bundle is None:
        return []
    try:
        # What is completed hasn't been expanded by the shell.
        manifest = read_manifest(Path(bundle).expanduser())
        return [task.name for task in manifest.tasks if task.name.startswith(incomplete)]
    except (BundleError, OSError, RuntimeError):  # the last if nobody has the home that a ~ stands for
        return []

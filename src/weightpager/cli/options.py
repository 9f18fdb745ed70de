"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle directory.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")]
Budget = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory for weights, such as 64MiB. Default: all that the bundle holds."),
]
Storage = Annotated[
    str, typer.Option(metavar="SIZE/s", help="Bandwidth of the storage that predictions assume, such as 300MB/s.")
]

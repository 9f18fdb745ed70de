"""``python -m benchmarks.kills``."""

import typer

from benchmarks.kills.run import main

typer.run(main)

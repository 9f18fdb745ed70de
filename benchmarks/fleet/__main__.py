"""``python -m benchmarks.fleet``."""

import typer

from benchmarks.fleet.run import main

typer.run(main)

"""``python -m benchmarks.prefetch``."""

import typer

from benchmarks.prefetch.run import main

typer.run(main)

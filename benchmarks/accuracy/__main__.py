"""``python -m benchmarks.accuracy``."""

import typer

from benchmarks.accuracy.run import main

typer.run(main)

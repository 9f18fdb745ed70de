"""``python -m benchmarks.serving``."""

import typer

from benchmarks.serving.run import main

typer.run(main)

"""``python -m benchmarks.report``."""

import typer

from benchmarks.report.run import main

typer.run(main)

"""``python -m benchmarks.kernels``."""

import typer

from benchmarks.kernels.run import main

typer.run(main)

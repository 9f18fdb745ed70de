"""``python -m benchmarks.accuracy.page``."""

import typer

from benchmarks.accuracy.page.page import main

if __name__ == "__main__":
    typer.run(main)

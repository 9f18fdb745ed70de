"""What is fetched to install each rival, in bytes.

    python -m benchmarks.device.install WHEEL --json docs/device.json

WHEEL is weightpager's own, as ``pip wheel --no-deps .`` makes it. pip fetches what this platform and Python take.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.device.measured import Row, check, tell


def main(
    wheel: Annotated[Path, typer.Argument(help="weightpager's own.")],
    json_: Annotated[Path | None, typer.Option("--json", help="File of rows.")] = None,
    only: Annotated[str, typer.Option(help="Only rows with this in their names.")] = "",
) -> None:
    """Fetch, and add up."""
    wanted = {
        "native": [str(wheel)],
        "torch": [f"{wheel}[torch]"],
        "onnx": ["onnxruntime", "tokenizers"],
        "llama.cpp": ["llama-cpp-python"],
    }
    wanted = {row: packages for row, packages in wanted.items() if only in row}
    about = "fetched by pip, torch from the index that pip is told of; sources need a compiler"
    check("install", about, wanted, json_)
    rows = {row: _fetched(packages) for row, packages in wanted.items()}
    tell("install", about, rows, "benchmarks.device.install", json_)


def _fetched(packages: list[str]) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", folder, *packages]
        subprocess.run(command, check=True)
        files = list(Path(folder).iterdir())
        sources = [file for file in files if file.suffix != ".whl"]
        return {
            "bytes": float(sum(file.stat().st_size for file in files)),
            "packages": float(len(files)),
            "sources": float(len(sources)),
        }


if __name__ == "__main__":
    typer.run(main)

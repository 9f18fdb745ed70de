"""``docs/device.json``: what whole processes took, by what they did; `benchmarks.report` shows it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic import TypeAdapter

from benchmarks.provenance import command, commit
from weightpager.bundle.report.document import Document
from weightpager.doctor.machine import describe

Row = dict[str, float | list[float]]
"""Figures of a process by name; of ``NAME_spread`` the least and the most."""

Section = Literal["texts", "decoder", "images", "install"]


class Measured(Document):
    """Rows of one command.

    Attributes:
        about: what every row shares, for people.
        rows: by process.
        machine: that they ran on.
        load: processes that were running in the five minutes before the end, ours and theirs included.
        command, commit: that print them.
    """

    about: str
    rows: dict[str, Row]
    machine: dict[str, Any]
    load: float
    command: str
    commit: str


_FILE = TypeAdapter(dict[Section, Measured])


def read(file: Path) -> dict[Section, Measured]:
    """A file's sections; none if there is no file."""
    return _FILE.validate_json(file.read_bytes()) if file.is_file() else {}


def tell(section: Section, about: str, rows: dict[str, Row], module: str, file: Path | None) -> None:
    """Print rows, and put them into a file if there is one; other rows that it has stay."""
    known = {} if file is None else read(file)
    kept = known[section].rows if section in known else {}
    found = Measured(
        about=about,
        rows=kept | rows,
        machine=describe(),
        load=round(os.getloadavg()[1], 1),
        command=command(module),
        commit=commit(),
    )
    typer.echo(_FILE.dump_json({section: found.model_copy(update={"rows": rows})}, indent=1))
    if file is not None:
        file.write_bytes(_FILE.dump_json({**known, section: found}, indent=1) + b"\n")

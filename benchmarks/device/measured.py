"""``docs/device.json``: what whole processes took, by what they did; `benchmarks.report` shows it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic import TypeAdapter

from benchmarks import row_file
from benchmarks.row_file import command, commit
from weightpager.bundle.report.compile_report import Document
from weightpager_lab.machine_facts import describe

Figure = float | list[float]

Row = dict[str, Figure]
"""Figures of a process by name; of ``NAME_spread`` the least and the most."""

Section = Literal["texts", "decoder", "images", "questions", "adapters", "pictures of any size", "install"]


class Measured(Document):
    """Rows of one command.

    Attributes:
        about: what every row shares, for people.
        rows: by process.
        machine: that they ran on.
        load: processes that were running in the five minutes before the end, ours and theirs included; the most if
            rows were measured at several times.
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


def check(section: Section, about: str, rows: Collection[str], file: Path | None) -> None:
    """Refuse before anything is measured what `tell` would refuse of rows with these names.

    Raises:
        typer.BadParameter: as `tell`.
    """
    known = {} if file is None else read(file)
    if section in known and known[section].rows.keys() - rows:
        _refuse_others(section, known[section], about)


def tell(section: Section, about: str, rows: dict[str, Row], module: str, file: Path | None) -> None:
    """Print rows, and put them into a file if there is one; other rows that it has stay.

    Raises:
        typer.BadParameter: the rows that stay were measured on another processor, at another commit or otherwise.
    """
    found = Measured(
        about=about,
        rows=rows,
        machine=describe(),
        load=round(os.getloadavg()[1], 1),
        command=command(module),
        commit=commit(),
    )
    typer.echo(_FILE.dump_json({section: found}, indent=1))
    if file is not None:
        known = read(file)
        if section in known and known[section].rows.keys() - rows.keys():
            found = _beside(section, known[section], found)
        row_file.write_text(file, _FILE.dump_json({**known, section: found}, indent=1).decode() + "\n")


def _beside(section: Section, kept: Measured, found: Measured) -> Measured:
    """New rows, and those of an earlier run that they don't replace."""
    _refuse_others(section, kept, found.about)
    both = kept.command if kept.command == found.command else f"{kept.command} && {found.command}"
    load = max(kept.load, found.load)
    return found.model_copy(update={"rows": kept.rows | found.rows, "command": both, "load": load})


def _refuse_others(section: Section, kept: Measured, about: str) -> None:
    now = {"cpu": str(describe().get("cpu")), "commit": commit(), "about": about}
    were = {"cpu": str(kept.machine.get("cpu")), "commit": kept.commit, "about": kept.about}
    for what, value in now.items():
        if were[what] != value:
            raise typer.BadParameter(
                f"expected the other rows of {section!r} to have the same {what}, {value!r}; found {were[what]!r}. "
                "Measure all rows again, or write these into another file",
                param_hint="--json",
            )

"""Rows of what benchmarks measure: their files, which appear whole or not at all, and where each row comes from."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Hashable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, TypeVar

from weightpager.bundle.files.new_file import new_file
from weightpager.doctor.machine import cpu_model
from weightpager_lab.machine_facts import commit_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class KeyedRow(DataclassInstance, Protocol):
        @property
        def key(self) -> Hashable:
            """What tells rows apart: one measurement each."""


Row = TypeVar("Row", bound="DataclassInstance")
Keyed = TypeVar("Keyed", bound="KeyedRow")


def read(file: Path, kind: type[Row]) -> list[Row]:
    return [kind(**row) for row in json.loads(file.read_bytes())] if file.is_file() else []


def write(file: Path, rows: Iterable[DataclassInstance]) -> None:
    write_json(file, [asdict(row) for row in rows])


def add(file: Path, rows: Iterable[Keyed], kind: type[Keyed]) -> None:
    write(file, {row.key: row for row in [*read(file, kind), *rows]}.values())


def write_json(file: Path, content: object) -> None:
    write_text(file, json.dumps(content, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    with new_file(file) as new:
        new.write(text.encode())


def command(module: str) -> str:
    """What was typed to run a benchmark; a path in the home directory as others would type it."""
    typed = shlex.join(["python", "-m", module, *sys.argv[1:]])
    return typed.replace(f"{Path.home()}/", "~/")


def commit() -> str:
    """Of the sources; "-dirty" behind it if they have been changed since, rows that benchmarks write aside."""
    return commit_of(Path()) or "unknown"


def cpu() -> str:
    return cpu_model(Path("/proc/cpuinfo").read_text(encoding="utf-8")) or "unknown"


class Origin(TypedDict):
    """All three, by the names that rows have for them."""

    cpu: str
    command: str
    commit: str


def origin(module: str) -> Origin:
    return {"cpu": cpu(), "command": command(module), "commit": commit()}

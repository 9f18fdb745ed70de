"""``ls``: the bundles in a folder."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from weightpager.bundle import Bundle
from weightpager.bundle.format.names import MANIFEST_HASH
from weightpager.cli import output
from weightpager.cli.options import Json
from weightpager.errors import BundleError, ConfigError
from weightpager.machine.paths import has_directory


def ls(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Folder to look into.")] = Path(),
    json: Json = False,
) -> None:
    """List the bundles in a folder: tasks, size on disk, page size. Reads no page; `verify` does.

    A bundle is a directory whose name ends in `.bundle`, or that holds a `manifest.blake3`. One that can't be opened is
    listed with what is wrong.

    Example: `weightpager ls models/`
    """
    listed = [_Listed.at(path) for path in _bundles(folder)]
    if json:
        output.print_json(listed)
        return
    if not listed:
        output.say(f"{folder}: no bundles")
        output.next_step("weightpager init, then weightpager compile tasks.yaml --out NAME.bundle")
        return
    output.table(str(folder), ["bundle", "tasks", "on disk", "pages", "of"], [each.cells() for each in listed])
    damaged = [each for each in listed if each.problem is not None]
    for each in damaged:
        output.errors().print(f"{each.bundle}: {each.problem}", style="red")
    if damaged:
        output.next_step(f"weightpager verify {shlex.quote(damaged[0].bundle)}")


def _bundles(folder: Path) -> list[Path]:
    """The folder itself if it is a bundle, else the bundles in it, by name. Hidden ones are unfinished."""
    try:
        if _is_bundle(folder):
            return [folder]
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise ConfigError(f"ls: expected a folder, found none at {folder}: {error.strerror}") from error
    return [folder / name for name in names if _is_bundle(folder / name)]


def _is_bundle(path: Path) -> bool:
    return has_directory(path) and (path.name.endswith(".bundle") or os.path.lexists(path / MANIFEST_HASH))


@dataclass(frozen=True)
class _Listed:
    """A bundle in the list. ``problem`` says why it can't be opened; pages are then unknown."""

    bundle: str
    bytes: int
    problem: str | None
    tasks: Sequence[str] = ()
    pages: int | None = None
    page_bytes: int | None = None

    @classmethod
    def at(cls, path: Path) -> _Listed:
        """Look into the bundle at a path."""
        try:
            opened = Bundle.open(path)
        except (BundleError, OSError) as error:
            return cls(str(path), _bytes(path), error.plain if isinstance(error, BundleError) else str(error))
        return cls(str(path), _bytes(path), None, list(opened.tasks), len(opened.pages), opened.page_bytes)

    def cells(self) -> list[object]:
        """The bundle's row in the table."""
        size = output.size(self.bytes)
        if self.pages is None or self.page_bytes is None:
            return [self.bundle, "damaged", size, "-", "-"]
        return [self.bundle, ", ".join(self.tasks), size, self.pages, output.size(self.page_bytes)]


def _bytes(path: Path) -> int:
    """Bytes of all files. Links aren't followed; files that can't be read don't count."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_size
            except OSError:
                continue
    return total

"""``ls``: the bundles in a folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

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
    found = [_facts(path) for path in _bundles(folder)]
    if json:
        output.print_json(found)
        return
    if not found:
        output.say(f"{folder}: no bundles")
        output.next_step("weightpager init, then weightpager compile tasks.yaml --out NAME.bundle")
        return
    output.table(str(folder), ["bundle", "tasks", "on disk", "pages", "of"], [_cells(facts) for facts in found])
    damaged = [facts for facts in found if facts["problem"] is not None]
    for facts in damaged:
        output.errors().print(f"{facts['bundle']}: {facts['problem']}", style="red")
    if damaged:
        output.next_step(f"weightpager verify {shlex.quote(damaged[0]['bundle'])}")


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


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"bundle": str(path), "bytes": _bytes(path), "problem": None}
    try:
        opened = Bundle.open(path)
    except (BundleError, OSError) as error:
        return facts | {"tasks": [], "pages": None, "page_bytes": None, "problem": str(error)}
    return facts | {"tasks": list(opened.tasks), "pages": len(opened.pages), "page_bytes": opened.page_bytes}


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


def _cells(facts: dict[str, Any]) -> list[object]:
    size = output.size(facts["bytes"])
    if facts["problem"] is not None:
        return [facts["bundle"], "damaged", size, "-", "-"]
    return [facts["bundle"], ", ".join(facts["tasks"]), size, facts["pages"], output.size(facts["page_bytes"])]

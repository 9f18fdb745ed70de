"""The sound bundles that mutants are made of: tiny models, every kind of page, parameter and task."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import weightpager as wp
from benchmarks.fuzz import trial
from tests.support.models import tiny
from weightpager.bundle import Bundle

WHOLE = "whole.bundle"
"""What a recipe makes, in a folder of its name."""

_LOW_RANK = {"method": "finetune", "steps": 4, "batch": 8, "private_steps": 6, "low_rank": 2}


@dataclass(frozen=True)
class Original:
    """A sound bundle.

    Attributes:
        name: of the recipe.
        path: of the bundle; its files are linked into mutants, and never written.
        files: paths of all files in it, sorted.
        pages: page file → number of its pages.
        outputs: task → the bytes of what its module answers to the trial's inputs.
    """

    name: str
    path: Path
    files: tuple[str, ...]
    pages: dict[str, int]
    outputs: dict[str, bytes]

    @classmethod
    def of(cls, path: Path) -> Original:
        """Of a bundle that lies there."""
        files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        manifest = Bundle.open(path).manifest
        pages = dict(zip(manifest.page_file_names(), manifest.page_files + manifest.row_files, strict=True))
        return cls(path.parent.name, path, tuple(files), pages, trial.outputs(path))

    def link(self, target: Path) -> None:
        """Make a copy of hard links."""
        for name in {os.path.dirname(name) for name in self.files}:  # noqa: PTH120 - a thousand times a second
            (target / name).mkdir(parents=True, exist_ok=True)
        for name in self.files:
            os.link(f"{self.path}/{name}", f"{target}/{name}")


def _assistant(folder: Path) -> Path:
    return _compiled(tiny.assistant(folder), folder)


def _writer(folder: Path) -> Path:
    return _compiled(tiny.writer(folder), folder)


def _tied(folder: Path) -> Path:
    """With a table in blocks that the head is tied to."""
    return _compiled(tiny.writer(folder, dtype="int4"), folder)


def _camera(folder: Path) -> Path:
    return _compiled(tiny.camera(folder), folder)


def _int8(folder: Path) -> Path:
    return _compiled(_pair(folder, dtype="int8", recover=_LOW_RANK), folder)


def _int4(folder: Path) -> Path:
    return _compiled(_pair(folder, dtype="int4"), folder)


def _grown(folder: Path) -> Path:
    """Of two page files."""
    base = _compiled(_pair(folder), folder, "base.bundle")
    content = tiny.assistant(folder)
    del content["block"], content["page"]
    content["tasks"] = {"pet": tiny.classification(folder, "pet", {"cat": ["cat"], "dog": ["dog"], "cow": ["cow"]})}
    return _compiled(content, folder, base=base)


def _pair(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two of the assistant's tasks: each one takes time whenever a mutant is opened."""
    content = tiny.assistant(folder, **changes)
    content["tasks"] = {name: content["tasks"][name] for name in ("animal", "colour")}
    return content


def _compiled(content: dict[str, Any], folder: Path, name: str = WHOLE, base: Path | None = None) -> Path:
    return wp.compile(content, out=folder / name, base=base, cache=False).path


RECIPES: dict[str, Callable[[Path], Path]] = {
    "assistant": _assistant,
    "writer": _writer,
    "tied": _tied,
    "camera": _camera,
    "int8": _int8,
    "int4": _int4,
    "grown": _grown,
}
"""Name → what compiles it into a folder."""


def compile_originals(folder: Path) -> list[Path]:
    """Compile all recipes; the bundles' paths."""
    found = []
    for name, recipe in RECIPES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        found.append(recipe(folder / name))
    return found

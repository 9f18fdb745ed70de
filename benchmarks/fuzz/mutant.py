"""One mutant: an original with something changed, drawn from a seed and a number alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import weightpager as wp
from benchmarks.fuzz import bundle_changes, config_changes, content_changes, trial
from benchmarks.fuzz.sealing import replace as replace_file
from benchmarks.fuzz.sealing import rewrite_file, rewrite_pages, seal_manifest
from tests.support.models import tiny, tiny_llava
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH

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
        files = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        manifest = Bundle.open(path).manifest
        pages = dict(zip(manifest.page_file_names(), manifest.page_files + manifest.row_files, strict=True))
        return cls(path.parent.name, path, tuple(files), pages, trial.outputs(path))

    def link(self, target: Path) -> None:
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


def _watcher(folder: Path) -> Path:
    """With a picture tower before its language model."""
    return _compiled(tiny_llava.watcher(folder), folder)


def _int8(folder: Path) -> Path:
    return _compiled(_pair(folder, dtype="int8", recover=_LOW_RANK), folder)


def _int4(folder: Path) -> Path:
    return _compiled(_pair(folder, dtype="int4"), folder)


def _grown(folder: Path) -> Path:
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
    "watcher": _watcher,
    "int8": _int8,
    "int4": _int4,
    "grown": _grown,
}
"""Name → what compiles it into a folder."""


def compile_originals(folder: Path) -> list[Path]:
    found = []
    for name, recipe in RECIPES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        found.append(recipe(folder / name))
    return found


@dataclass(frozen=True)
class Mutant:
    """What was made.

    Attributes:
        number: that it was drawn from, with the campaign's seed.
        original: that it was made of.
        kind: of the change.
        words: what was changed.
        sealed: hashes were recomputed: its answers may be others.
        damaged: bytes differ and hashes don't fit: somebody must notice.
        locked: a file may not be read, which the superuser doesn't feel.
        draw: for choices of the trial.
    """

    number: int
    original: Original
    kind: str
    words: str
    sealed: bool
    damaged: bool
    locked: bool
    draw: Random


_Change = Callable[[Original, Path, Random], tuple[str, bool, bool]]
"""Changes a copy of an original; words, whether it was sealed, whether it is damaged."""


def make(originals: Sequence[Original], seed: int, number: int, target: Path) -> Mutant:
    """Write mutant ``number`` to ``target``, which must not be there yet."""
    random = Random(f"{seed} {number}")
    original = random.choice(originals)
    kind = random.choices(list(_CHANGES), [weight for _, weight in _CHANGES.values()])[0]
    original.link(target)
    words, sealed, damaged = _CHANGES[kind][0](original, target, random)
    return Mutant(number, original, kind, words, sealed, damaged, words.startswith("locked"), random)


def _bytes(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    name = random.choice(original.files)
    before = (target / name).read_bytes()
    after, words = content_changes.change_bytes(before, random)
    replace_file(target / name, after)
    return f"{name}: {words}", False, before != after


def _sealed_bytes(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    name = random.choice([name for name in original.files if name != MANIFEST_HASH])
    after, words = content_changes.change_bytes((target / name).read_bytes(), random)
    _seal(target, name, after)
    return f"{name}: {words}", True, False


def _manifest(_: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    after, words = content_changes.change_json((target / MANIFEST).read_bytes(), random)
    _seal(target, MANIFEST, after)
    return f"{MANIFEST}: {words}", True, False


def _other_json(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    name = random.choice([name for name in original.files if name.endswith(".json") and name != MANIFEST])
    after, words = content_changes.change_json((target / name).read_bytes(), random)
    _seal(target, name, after)
    return f"{name}: {words}", True, False


def _tensors(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    names = [name for name in original.files if name.endswith(".safetensors") and not name.startswith("pages-")]
    name = random.choice(names)
    after, words = content_changes.change_tensors((target / name).read_bytes(), random)
    _seal(target, name, after)
    return f"{name}: {words}", True, False


def _pages(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    """Other values in pages, with ids that fit."""
    name = random.choice(list(original.pages))
    content = bytearray((target / name).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    at, size = random.randrange(start, len(content)), random.choice([1, 2, 4, 64, 4096])
    content[at : at + size] = random.choice([random.randbytes, _ones, bytes])(min(size, len(content) - at))
    first = sum(count for other, count in original.pages.items() if other < name)
    rewrite_pages(target, name, first, bytes(content))
    return f"{name}: other values at {at}", True, False


def _ones(count: int) -> bytes:
    """Not a number, in every floating-point type."""
    return b"\xff" * count


def _directory(_: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    words, sealed = bundle_changes.change_files(target, random)
    return words, sealed, words.startswith("missing")


def _sparse(_: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    words, fits = bundle_changes.grow(target, random)
    return words, True, not fits


def _misfit(_: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    return bundle_changes.change_fit(target, random), True, False


def _configuration(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    """A file of ``model/``, by somebody who knows what is made of it."""
    names = [name for name in config_changes.CHANGES if name in original.files]
    name = random.choice([*names, config_changes.CONFIG, *names])
    after, words = config_changes.change(name, (target / name).read_bytes(), random)
    _seal(target, name, after)
    return f"{name}: {words}", True, False


_CHANGES: dict[str, tuple[_Change, int]] = {
    "bytes": (_bytes, 12),
    "sealed bytes": (_sealed_bytes, 15),
    "manifest": (_manifest, 25),
    "other JSON": (_other_json, 18),
    "tensors": (_tensors, 25),
    "pages": (_pages, 3),
    "directory": (_directory, 15),
    "sparse": (_sparse, 12),
    "configuration": (_configuration, 35),
    "misfit": (_misfit, 25),
}
"""Kind → the change, and how often it is made."""


def _seal(target: Path, name: str, content: bytes) -> None:
    if name == MANIFEST:
        seal_manifest(target, content)
    elif name.startswith("pages-"):
        replace_file(target / name, content)  # ids cover pages, and nothing else may differ
    else:
        rewrite_file(target, name, content)

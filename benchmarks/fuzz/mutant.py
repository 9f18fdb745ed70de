"""One mutant: an original with something changed, drawn from a seed and a number alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from benchmarks.fuzz.changes import (
    byte_change,
    config_change,
    file_change,
    json_change,
    misfit_change,
    sparse_change,
    tensor_change,
)
from benchmarks.fuzz.original import Original
from benchmarks.fuzz.sealing import replace as replace_file
from benchmarks.fuzz.sealing import rewrite_file, rewrite_pages, seal_manifest
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH


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
    after, words = byte_change.change(before, random)
    replace_file(target / name, after)
    return f"{name}: {words}", False, before != after


def _sealed_bytes(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    name = random.choice([name for name in original.files if name != MANIFEST_HASH])
    after, words = byte_change.change((target / name).read_bytes(), random)
    _seal(target, name, after)
    return f"{name}: {words}", True, False


def _manifest(_: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    after, words = json_change.change((target / MANIFEST).read_bytes(), random)
    _seal(target, MANIFEST, after)
    return f"{MANIFEST}: {words}", True, False


def _other_json(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    name = random.choice([name for name in original.files if name.endswith(".json") and name != MANIFEST])
    after, words = json_change.change((target / name).read_bytes(), random)
    _seal(target, name, after)
    return f"{name}: {words}", True, False


def _tensors(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    names = [name for name in original.files if name.endswith(".safetensors") and not name.startswith("pages-")]
    name = random.choice(names)
    after, words = tensor_change.change((target / name).read_bytes(), random)
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
    words, sealed = file_change.change(target, random)
    return words, sealed, words.startswith("missing")


def _sparse(_: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    words, fits = sparse_change.change(target, random)
    return words, True, not fits


def _misfit(_: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    return misfit_change.change(target, random), True, False


def _configuration(original: Original, target: Path, random: Random) -> tuple[str, bool, bool]:
    """A file of ``model/``, by somebody who knows what is made of it."""
    names = [name for name in config_change.CHANGES if name in original.files]
    name = random.choice([*names, config_change.CONFIG, *names])
    after, words = config_change.change(name, (target / name).read_bytes(), random)
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

"""Checks every byte of a bundle against its hashes, and every index and bound."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle import page_file
from weightpager.bundle.adapter import read_adapter
from weightpager.bundle.files import check_file
from weightpager.bundle.manifest import Manifest
from weightpager.bundle.model_files import check_model_file, extra_files, model_files, unlisted
from weightpager.bundle.reader import MANIFEST, MANIFEST_HASH, Bundle, read_manifest, read_page_index
from weightpager.bundle.regular_file import open_regular
from weightpager.errors import BundleError, BundleFormatError

_MEND = "mend what is damaged with --repair --from OTHER, where OTHER is another copy"
_COPY = "copy the whole bundle again: only its manifest says what belongs into it"
_ANEW = "compile the bundle again: its hashes fit what is wrong in it, so any copy is as wrong"

_DAMAGE = ("file", "size", "BLAKE3")
"""Fields of errors about a manifest that isn't the one that was written."""


@dataclass(frozen=True)
class Verification:
    """What was checked, and what is wrong.

    Attributes:
        files: that the manifest lists; 0 if it can't be read.
        pages: that were compared with their ids; 0 if the page index can't be read.
        problems: one line for each.
        advice: what to do about those that don't say so themselves.
    """

    files: int
    pages: int
    problems: tuple[str, ...]
    advice: tuple[str, ...] = ()


def verify(path: str | Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Verification:
    """Check a whole bundle; finds every damaged file and page if only the manifest can be read.

    Args:
        path: bundle directory.
        progress: told (pages done, pages in all).
    """
    root = Path(path)
    try:
        bundle = Bundle.open(root)
    except BundleError as error:
        return _verify_closed(root, error, progress)
    wrong = [*_adapter_problems(bundle), *_model_problems(root, bundle.manifest)]
    return _verify_parts(root, bundle.manifest, bundle.pages.ids, wrong, progress)


def _verify_closed(root: Path, refusal: BundleError, progress: Callable[[int, int], None]) -> Verification:
    """Check a bundle that can't be opened."""
    try:
        manifest = read_manifest(root)
    except BundleError:
        return Verification(0, 0, (str(refusal),), _advice_without_manifest(root, refusal))
    try:
        ids = read_page_index(root, manifest).ids
    except BundleError:
        ids = np.empty((0, 32), np.uint8)  # the refusal says why
    return _verify_parts(root, manifest, ids, [str(refusal), *_model_problems(root, manifest)], progress)


def _verify_parts(
    root: Path,
    manifest: Manifest,
    ids: npt.NDArray[np.uint8],
    wrong: list[str],
    progress: Callable[[int, int], None],
) -> Verification:
    """Check files and pages one by one; ``wrong`` is what the parsers say, of damaged files too."""
    files, pages = _file_problems(root, manifest), _page_problems(root, manifest, ids, progress)
    damaged = {*files, *pages}
    wrong = [problem for problem in dict.fromkeys(wrong) if problem not in damaged]
    extra = [str(unlisted(name)) for name in extra_files(root, manifest)]
    advice = [line for line, apt in ((_MEND, damaged), (_ANEW, wrong)) if apt]
    return Verification(len(manifest.files), len(ids), (*files, *wrong, *extra, *pages), tuple(advice))


def _advice_without_manifest(root: Path, error: BundleError) -> tuple[str, ...]:
    if not any(os.path.lexists(root / name) for name in (MANIFEST, MANIFEST_HASH)):
        return ()  # no bundle at all
    return (_COPY if isinstance(error, BundleFormatError) and error.field in _DAMAGE else _ANEW,)


def _file_problems(root: Path, manifest: Manifest) -> list[str]:
    problems = []
    for name, entry in manifest.files.items():
        try:
            check_file(root, name, entry)
        except BundleError as error:
            problems.append(str(error))
    return problems


def _adapter_problems(bundle: Bundle) -> list[str]:
    problems = []
    for task in bundle.tasks:
        try:
            read_adapter(bundle, task)
        except BundleError as error:
            problems.append(str(error))
    return problems


def _model_problems(root: Path, manifest: Manifest) -> list[str]:
    problems = []
    for name in model_files(manifest):
        try:
            check_model_file(root, manifest, name)
        except BundleError as error:
            problems.append(str(error))
    return problems


def _page_problems(
    root: Path, manifest: Manifest, ids: npt.NDArray[np.uint8], progress: Callable[[int, int], None]
) -> list[str]:
    """What is wrong with page files, and with the pages in them as far as their ids are known."""
    problems = []
    first, size = 0, manifest.page_bytes
    for name, count in zip(manifest.page_file_names(), manifest.page_files, strict=True):
        try:
            page_file.check(root / name, count, size)
        except BundleError as error:
            problems.append(str(error))
        for place, problem in _damaged_pages(root / name, ids[first : first + count], size):
            if problem:
                problems.append(f"{name}: page {first + place} (place {place}): {problem}")
            progress(first + place + 1, len(ids))
        first += count
    return problems


def _damaged_pages(path: Path, ids: npt.NDArray[np.uint8], size: int) -> Iterator[tuple[int, str]]:
    """What is wrong with each page that the file has, if anything; its size says how many are missing."""
    start = len(page_file.header(len(ids), size))
    try:
        file = open_regular(path)
    except OSError:
        return  # which the check of the file has told
    with file:
        whole = max(0, os.fstat(file.fileno()).st_size - start) // size
        for place, digest in enumerate(ids[:whole]):
            yield place, _page_problem(file, start + place * size, size, digest.tobytes())


def _page_problem(file: BinaryIO, offset: int, size: int, digest: bytes) -> str:
    try:
        file.seek(offset)
        content = file.read(size)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if blake3(content).digest() == digest else "its bytes do not match its BLAKE3 hash"

"""Checks every byte of a bundle against its hashes, and every index and bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from weightpager.bundle import page_file
from weightpager.bundle.adapter import read_adapter
from weightpager.bundle.files import check_file
from weightpager.bundle.model_files import model_dir
from weightpager.bundle.reader import MODEL, Bundle
from weightpager.bundle.regular_file import open_regular
from weightpager.errors import BundleError


@dataclass(frozen=True)
class Verification:
    """What was checked, and what is wrong: one line for each problem."""

    files: int
    pages: int
    problems: tuple[str, ...]


def verify(path: str | Path, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Verification:
    """Check a whole bundle; finds every problem behind the first, unless the bundle can't be opened at all.

    Args:
        path: bundle directory.
        progress: told (pages done, pages in all).
    """
    try:
        bundle = Bundle.open(path)
    except BundleError as error:
        return Verification(0, 0, (str(error),))
    problems = [
        *_file_problems(bundle),
        *_adapter_problems(bundle),
        *_model_problems(bundle),
        *_page_problems(bundle, progress),
    ]
    return Verification(len(bundle.manifest.files), len(bundle.pages), tuple(problems))


def _file_problems(bundle: Bundle) -> list[str]:
    problems = []
    for name, entry in bundle.manifest.files.items():
        if name.startswith(f"{MODEL}/"):
            continue  # model_dir checks those
        try:
            check_file(bundle.path, name, entry)
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


def _model_problems(bundle: Bundle) -> list[str]:
    try:
        model_dir(bundle)
    except BundleError as error:
        return [str(error)]
    return []


def _page_problems(bundle: Bundle, progress: Callable[[int, int], None]) -> list[str]:
    problems = []
    page, total, size = 0, len(bundle.pages), bundle.page_bytes
    for name, count in zip(bundle.manifest.page_file_names(), bundle.manifest.page_files, strict=True):
        start = page_file.check(bundle.path / name, count, size)
        with open_regular(bundle.path / name) as file:
            for place in range(count):
                problem = _page_problem(file, start + place * size, size, bundle.pages.ids[page].tobytes())
                if problem:
                    problems.append(f"{name}: page {page} (place {place}): {problem}")
                page += 1
                progress(page, total)
    return problems


def _page_problem(file: BinaryIO, offset: int, size: int, digest: bytes) -> str:
    try:
        file.seek(offset)
        content = file.read(size)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if blake3(content).digest() == digest else "its bytes do not match its BLAKE3 hash"

"""Checks every byte of a bundle against its hashes, every index and bound, and that its tasks can run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weightpager.bundle.files.entry import check_file
from weightpager.bundle.files.regular_file import open_regular
from weightpager.bundle.files.tensor_file import Header, read_header
from weightpager.bundle.format import page_file
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH, MODEL, REPORT, RESIDENT, private_file
from weightpager.bundle.model_files import check_model_file, extra_files, model_files, unlisted
from weightpager.bundle.parameter_files import parameter_files, stored_parameters
from weightpager.bundle.reader import LOOKS, Bundle, opened_files, place_of, read_manifest, read_page_index
from weightpager.bundle.report.compile_report import has_report, read_report
from weightpager.errors import BundleError, BundleFormatError
from weightpager.kernels import choice, isa
from weightpager.kernels.choice import REFERENCE
from weightpager.machine.packages import is_installed
from weightpager.progress import StepProgress, silent
from weightpager.readers.image_reader import open_image_reader
from weightpager.readers.tokenizer import open_tokenizer

_MEND = "mend what is damaged with --repair --from OTHER, where OTHER is another copy"
_COPY = "copy the whole bundle again: only its manifest says what belongs into it"
_ANEW = "compile the bundle again: its hashes fit what is wrong in it, so any copy is as wrong"


@dataclass(frozen=True)
class Verification:
    """What was checked, and what is wrong.

    Attributes:
        files: number of files that the manifest lists; 0 if it can't be read.
        pages: number of pages that were compared with their ids; 0 if the page index can't be read.
        problems: what is wrong, a line for each.
        advice: what to do about those that don't say so themselves.
    """

    files: int
    pages: int
    problems: tuple[str, ...]
    advice: tuple[str, ...] = ()


class _Findings:
    """Problems that checks have found, each once.

    Attributes:
        damaged: problems that another copy mends.
        wrong: problems of what fits its hash, so that any copy has them.
    """

    def __init__(self) -> None:
        self.damaged: dict[str, None] = {}
        self.wrong: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self.damaged or self.wrong)

    def run(self, check: Callable[..., object], *arguments: object) -> None:
        try:
            check(*arguments)
        except BundleError as error:
            self.add(error)

    def add(self, error: BundleError) -> None:
        (self.damaged if _is_damage(error) else self.wrong)[error.plain] = None


def verify(path: str | Path, progress: StepProgress = silent) -> Verification:
    """Check a whole bundle; finds every damaged file and page if only the manifest can be read.

    What an engine with native code refuses when it opens a bundle, or reads a first input, this refuses too. Of tasks
    that need torch it reads all files, but can't say whether transformers can build a module of them.

    Args:
        path: bundle directory.
        progress: told (pages done, pages in all).
    """
    root = Path(path)
    for _ in range(LOOKS):
        before = place_of(root)
        found = _verified(root, progress)
        if not found.problems or place_of(root) == before:
            break  # else a part of another bundle was checked, which has taken this one's place meanwhile
    return found


def _verified(root: Path, progress: StepProgress) -> Verification:
    findings = _Findings()
    try:
        bundle = Bundle.open(root)
    except BundleError as error:
        return _verify_closed(root, error, progress)
    manifest = bundle.manifest
    done = {*opened_files(manifest), REPORT}
    for name in (name for name in _files(manifest) if name not in done):
        findings.run(_check_file, root, manifest, name)
    if has_report(bundle):
        findings.run(read_report, bundle)
    if not findings and not any(extra_files(root, manifest)):
        findings.run(_check_tasks, bundle)
        findings.run(_check_reader, bundle)
    return _verify_pages(root, manifest, bundle.index.ids, findings, progress)


def _check_tasks(bundle: Bundle) -> None:
    """Have native code see that its tasks can run, where it is built, reads the blocks, and each kind has a graph."""
    if isa() == REFERENCE or not bundle.has_graphs or bundle.manifest.block_dtypes - choice.READS:
        return
    from weightpager.backends.native.backend import NativeBackend

    shared = _header(bundle, RESIDENT)
    own = {task: _header(bundle, private_file(task)) for task in bundle.tasks}
    NativeBackend(bundle).check_headers(bundle, {task: {**shared, **header} for task, header in own.items()})


def _header(bundle: Bundle, file: str) -> Header:
    return read_header(bundle.path, file, bundle.entry(file))


def _check_reader(bundle: Bundle) -> None:
    """See that inputs can be read. Of processors of images that only transformers has, nothing is said."""
    if not bundle.takes_images:
        open_tokenizer(bundle)
    elif is_installed("PIL"):
        open_image_reader(bundle)


def _verify_closed(root: Path, refusal: BundleError, progress: StepProgress) -> Verification:
    try:
        manifest = read_manifest(root)
    except BundleError:
        return Verification(0, 0, (refusal.plain,), _advice_without_manifest(root, refusal))
    try:
        ids = read_page_index(root, manifest).ids
    except BundleError:
        ids = np.empty((0, 32), np.uint8)  # the refusal says why
    findings = _Findings()
    for name in _files(manifest):
        findings.run(_check_file, root, manifest, name)
    findings.add(refusal)
    return _verify_pages(root, manifest, ids, findings, progress)


def _verify_pages(
    root: Path,
    manifest: Manifest,
    ids: npt.NDArray[np.uint8],
    found: _Findings,
    progress: StepProgress,
) -> Verification:
    pages = dict.fromkeys(_page_problems(root, manifest, ids, progress))
    damaged, wrong = (
        [problem for problem in problems if problem not in pages] for problems in (found.damaged, found.wrong)
    )
    extra = [str(unlisted(name)) for name in extra_files(root, manifest)]
    advice = [line for line, apt in ((_MEND, damaged or pages), (_ANEW, wrong)) if apt]
    return Verification(len(manifest.files), len(ids), (*damaged, *wrong, *extra, *pages), tuple(advice))


def _advice_without_manifest(root: Path, error: BundleError) -> tuple[str, ...]:
    if not any(os.path.lexists(root / name) for name in (MANIFEST, MANIFEST_HASH)):
        return ()  # no bundle at all
    return (_COPY if _is_damage(error) else _ANEW,)


def _is_damage(error: BundleError) -> bool:
    return isinstance(error, BundleFormatError) and error.is_damage


def _files(manifest: Manifest) -> dict[str, None]:
    """Names of all files that a bundle has or should have, except page files."""
    return dict.fromkeys([*manifest.files, *model_files(manifest), *parameter_files(manifest)])


def _check_file(root: Path, manifest: Manifest, name: str) -> None:
    """Compare a file with its entry, and see that it holds what a reader expects. Errors are those of its readers."""
    if name.startswith(f"{MODEL}/"):
        check_model_file(root, manifest, name)
    elif name in parameter_files(manifest):
        with stored_parameters(root, manifest, name):
            pass
    else:
        check_file(root, name, manifest.entry(name))


def _page_problems(root: Path, manifest: Manifest, ids: npt.NDArray[np.uint8], progress: StepProgress) -> list[str]:
    """Problems of page files, and of the pages whose ids are known."""
    problems = []
    size = manifest.page_bytes
    for name, first, count in manifest.page_ranges():
        try:
            page_file.check(root / name, count, size)
        except BundleError as error:
            problems.append(error.plain)
        for place, problem in _damaged_pages(root / name, ids[first : first + count], size):
            if problem:
                problems.append(f"{name}: page {first + place} (place {place}): {problem}")
            progress(first + place + 1, len(ids))
    return problems


def _damaged_pages(path: Path, ids: npt.NDArray[np.uint8], size: int) -> Iterator[tuple[int, str]]:
    """Places of the pages in the file, and their problems, if any; the check of the file's size finds missing ones."""
    start = len(page_file.header(len(ids), size))
    try:
        file = open_regular(path)
    except OSError:
        return  # which the check of the file has told
    with file:
        hashes = page_file.PageHashes(file.fileno(), size)
        whole = max(0, os.fstat(file.fileno()).st_size - start) // size
        for place, digest in enumerate(ids[:whole]):
            yield place, _page_problem(hashes, start + place * size, digest.tobytes())


def _page_problem(hashes: page_file.PageHashes, offset: int, digest: bytes) -> str:
    try:
        found = hashes.at(offset)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if found == digest else "its bytes do not match its BLAKE3 hash"

"""Writing a bundle: into a temporary directory beside the target, exchanged for it as `new_directory` says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from msgspec.structs import replace
from safetensors.numpy import save

from weightpager.bundle.files.entry import hash_file
from weightpager.bundle.files.new_directory import imitate_tree, locked, new_directory, restore
from weightpager.bundle.files.regular_file import storage_errors_as
from weightpager.bundle.format import page_file, placement, row_table
from weightpager.bundle.format.manifest import VERSION, Manifest
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH, PULLED
from weightpager.bundle.format.page_file import PageIndex
from weightpager.bundle.format.placement import Permutations, Placement
from weightpager.bundle.held_out_places import portable
from weightpager.bundle.reader import Bundle, check_in_place
from weightpager.errors import BundleFormatError, CompileError, ConfigError, WeightpagerError
from weightpager.machine.paths import has_directory, has_file

storage_errors = partial(storage_errors_as, CompileError, "the bundle")
"""A context that turns an `OSError` of the storage into a `CompileError`."""


class BundleWriter:
    """Collects a bundle's files in a directory that nobody reads yet; a storage that refuses one is a `CompileError`.

    Attributes:
        remembers: whether the user's cache may keep where held-out data lies.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.remembers = True

    def add(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Create a file and have ``write`` fill it."""
        path = self.root / name
        with storage_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # it may be a link to another bundle's file, which must stay as it is
            with path.open("wb") as file:
                write(file)

    def put(self, name: str, content: bytes) -> None:
        self.add(name, lambda file: file.write(content))

    def put_pages(self, name: str, pages: Iterator[bytes], count: int, page_bytes: int) -> list[bytes]:
        """Create a page file of so many pages; their ids. Errors are those of `put`, as for what follows."""
        ids: list[bytes] = []

        def seen(page: bytes) -> bytes:
            ids.append(blake3(page).digest())
            return page

        some = map(seen, islice(pages, count))
        self.add(name, lambda file: page_file.write(file, some, count, page_bytes))
        return ids

    def put_index(self, index: PageIndex) -> None:
        self.put(page_file.FILE, save(dict(index.arrays())))

    def put_placement(self, blocks: Placement) -> None:
        self.put(placement.FILE, save(dict(blocks.arrays())))

    def put_permutations(self, orders: Permutations) -> None:
        """Create the file of permutations, if anything was moved."""
        if orders.orders:
            self.put(placement.PERMUTATIONS, save(dict(orders.arrays())))

    def put_row_places(self, places: Mapping[str, npt.NDArray[np.unsignedinteger[Any]]]) -> None:
        """Create the file that says where each table's rows lie, if there is a table."""
        if places:
            self.put(row_table.FILE, save(dict(places)))

    def link(self, name: str, original: Path) -> None:
        """Take over a file of another bundle: as a hard link, which costs no space, where the file system can.

        A symbolic link is followed: downloads lie in caches as links, which lead nowhere from another directory.
        """
        path = self.root / name
        with storage_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # as in `add`
            try:
                os.link(os.path.realpath(original), path)
            except OSError:
                shutil.copyfile(original, path)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest of the version that we write, with the hash of every file but the page files.

        Absolute paths of data become portable: see `held_out_places`.
        """
        skipped = {MANIFEST, MANIFEST_HASH, *manifest.page_file_names()}
        with storage_errors():
            files = {name: hash_file(self.root / name) for name in _walk(self.root) if name not in skipped}
        tasks = [portable(task, self.root.parent, remember=self.remembers) for task in manifest.tasks]
        text = replace(manifest, version=VERSION, tasks=tasks, files=files).dump()  # page ids cover page files
        self.put(MANIFEST, text)
        self.put(MANIFEST_HASH, blake3(text).hexdigest().encode() + b"\n")


@contextmanager
def writing(target: str | Path, *, force: bool = False, origin: Bundle | None = None) -> Iterator[BundleWriter]:
    """Write a bundle that appears at ``target`` whole, or not at all.

    Whatever stops the body leaves the target as it was, as with `new_directory`. A bundle that is replaced hands on its
    mode and that of its manifest, and owner and group where permitted; else the umask decides.

    Args:
        target: directory to create; a symbolic link to a bundle stays, and what it points to is replaced.
        force: replace an existing bundle. Anything else that exists is never replaced.
        origin: the bundle that the new one is made of. What is linked by its path would be another one's if a command
            had replaced it meanwhile, and that command's work would be lost if the new one took its place.

    Raises:
        BundleError: the origin has been replaced.
        ConfigError: the target exists, or has come meanwhile, and may not be replaced, or was installed by `pull`;
            or its parent doesn't exist.
        CompileError: the storage refused a write, or another command is writing to the target at this moment.
    """
    path = Path(os.path.realpath(target))
    if has_directory(path.parent):
        with storage_errors():
            restore(path)
    _check_target(path, force)
    with ExitStack() as held, new_directory(path, storage_errors, replace=force) as temporary:
        with _blaming(origin):
            yield BundleWriter(temporary)
        _check_target(path, force)  # hours may have gone by, and another command may have written there
        held.enter_context(_alone(path))
        if origin is not None:
            check_in_place(origin)
        if os.path.lexists(path):
            with storage_errors():
                imitate_tree(temporary, path.stat(), (path / MANIFEST).stat())


@contextmanager
def _blaming(origin: Bundle | None) -> Iterator[None]:
    """Where the origin has been replaced, say so instead of what that has led to."""
    try:
        yield
    except WeightpagerError:
        if origin is not None:
            with suppress(BundleFormatError):  # it can't be read, which says less than the first error
                check_in_place(origin)
        raise


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep others from replacing or mending the bundle at a path, if there is one."""
    if not os.path.lexists(path):
        yield
        return
    taken = CompileError(f"{path}: expected to be alone, found another command writing there; run this one again")
    with locked(path, os.O_RDONLY | os.O_DIRECTORY, taken, storage_errors, required=False) as descriptor:
        with storage_errors():
            same = os.path.samestat(os.fstat(descriptor), path.stat())
        if not same:
            raise taken
        yield


def _check_target(path: Path, force: bool) -> None:
    if not has_directory(path.parent):
        raise ConfigError(f"out: expected a directory to write into, but {path.parent} does not exist")
    if not os.path.lexists(path):
        return
    if path.match(PULLED):
        raise ConfigError(
            f"out: expected a bundle of your own, found {path}, a version that 'weightpager pull' installed and that "
            "'rollback' counts on; write elsewhere, or copy the bundle first"
        )
    if not has_file(path / MANIFEST):
        raise ConfigError(f"out: {path} exists and is not a bundle; choose another name")
    if not force:
        raise ConfigError(f"out: {path} exists; replace it with --force, or choose another name")


def _walk(root: Path) -> Iterator[str]:
    yield from sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())

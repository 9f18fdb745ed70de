"""What has become of a bundle since an engine opened it, and the numbers of its pages, which outlive that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle import Bundle, PageIndex
from weightpager.bundle.format import row_table
from weightpager.bundle.format.names import MODEL, RESIDENT, private_file
from weightpager.bundle.parts.adapter import adapter_files
from weightpager.errors import BundleError
from weightpager.graph.file import kind_of_file
from weightpager.runtime.planning.plans import Pages
from weightpager.store import JoinedStore, PageStore


@dataclass(frozen=True)
class BundleChange:
    """Names of the tasks that differ between two states of a bundle.

    Attributes:
        added: tasks that the bundle didn't have.
        removed: tasks that it no longer has.
        changed: tasks compiled or packed anew.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    @classmethod
    def between(cls, old: Bundle, new: Bundle) -> BundleChange:
        """Compare two states of a bundle.

        Raises:
            BundleError: they aren't of the same model, or have pages of another size, so that an engine can't go from
                one to the other.
        """
        for what in ("block", "layout", "dtype", "layers", "weights"):
            if getattr(old.manifest, what) != getattr(new.manifest, what):
                raise _other_model(new, what)
        before, after = _graphs(old), _graphs(new)
        same_graphs = all(before[kind] == after[kind] for kind in before.keys() & after.keys())
        if _shared_files(old) != _shared_files(new) or not same_graphs:
            raise _other_model(new, "model or resident parameters")
        if old.page_bytes != new.page_bytes:
            old_size, new_size = (f"{bundle.page_bytes // 1024}KiB" for bundle in (old, new))
            raise BundleError(
                f"{new.path}: expected pages of {old_size}, as the engine has them, found {new_size}; "
                f"'weightpager repack --page {old_size}' keeps them, or close the engine and open the bundle again"
            )
        both = [name for name in new.tasks if name in old.tasks]
        return cls(
            tuple(name for name in new.tasks if name not in old.tasks),
            tuple(name for name in old.tasks if name not in new.tasks),
            tuple(name for name in both if _fingerprint(old, name) != _fingerprint(new, name)),
        )


def _other_model(bundle: Bundle, what: str) -> BundleError:
    return BundleError(
        f"{bundle.path}: expected the model that the engine was opened with, found another {what}; "
        "close the engine and open the bundle again"
    )


def _shared_files(bundle: Bundle) -> dict[str, str]:
    files = bundle.manifest.files
    shared = (RESIDENT, row_table.FILE)
    model = {name for name in files if name.startswith(f"{MODEL}/")} - _graphs(bundle).keys()
    hashes = {name: files[name].blake3 for name in files if name in shared or name in model}
    return hashes | {"rows": blake3(bundle.row_ids.tobytes()).hexdigest()}


def _graphs(bundle: Bundle) -> dict[str, str]:
    """Hashes of graphs by file: tasks of another kind bring another one, or an upgrade does."""
    return {name: entry.blake3 for name, entry in bundle.manifest.files.items() if kind_of_file(name) is not None}


def _fingerprint(bundle: Bundle, task: str) -> bytes:
    """A hash of all that a task's outputs depend on, wherever its pages lie."""
    whole = blake3(bundle.task(task).dump())
    for file in (private_file(task), *adapter_files(task)):
        entry = bundle.manifest.files.get(file)
        whole.update(b"none" if entry is None else entry.blake3.encode())
    for table in bundle.tables(task).values():
        page, place = np.divmod(table.locations, bundle.manifest.blocks_per_page)
        for array in (table.crow_indices, table.col_indices, bundle.pages.ids[page], place):
            whole.update(np.ascontiguousarray(array).tobytes())
    return bytes(whole.digest())


class PageNumbers:
    """Every page that a bundle has had since the engine opened it, each under one number.

    A page that is found again in a changed bundle, by its id and layer, keeps its number and the place that it is read
    from. Of pages that are equal, the first is taken for the first, and so on.

    Attributes:
        index: of all of them; signatures are those of the bundle that brought the page, and not used.
        store: reads them by these numbers.
        capacity: numbers that there can be.
    """

    def __init__(self, bundle: Bundle, store: PageStore, capacity: int) -> None:
        self.capacity = capacity
        self.store = JoinedStore()
        self.index = PageIndex(bundle.pages.ids[:0], bundle.pages.layers[:0], bundle.pages.signatures[:0])
        self.adopt(bundle, store, self.of(bundle))

    def of(self, bundle: Bundle) -> npt.NDArray[np.int64]:
        """The numbers of a bundle's pages, int64 [its pages]; new pages get the next free ones.

        Raises:
            BundleError: there are more than the engine has room for.
        """
        known = {key: number for number, key in enumerate(_keys(self.index))}
        numbers = np.array([known.get(key, -1) for key in _keys(bundle.pages)], np.int64)
        new = numbers < 0
        numbers[new] = len(self.index) + np.arange(new.sum())
        if len(self.index) + new.sum() > self.capacity:
            raise BundleError(
                f"{bundle.path}: expected at most {self.capacity} pages since the engine was opened, found "
                f"{len(self.index) + new.sum()}; close it and open the bundle again"
            )
        return numbers

    def new_among(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Indices of a bundle's pages that aren't read from any store yet, ascending.

        Args:
            numbers: what `of` has said of the bundle.
        """
        return np.flatnonzero(numbers >= len(self.index))

    def adopt(self, bundle: Bundle, store: PageStore, numbers: npt.NDArray[np.int64]) -> None:
        """Read new pages from this store from now on; it is closed with the others.

        Args:
            bundle: whose pages they are.
            store: the bundle's store.
            numbers: what `of` has said of it.
        """
        new = self.new_among(numbers)
        old, added = self.index, bundle.pages
        self.store.add(store, new)
        self.index = (
            added
            if not len(old)
            else PageIndex(
                np.concatenate([old.ids, added.ids[new]]),
                np.concatenate([old.layers, added.layers[new]]),
                np.concatenate([old.signatures, added.signatures[new]]),
            )
        )


def _keys(index: PageIndex) -> Iterator[tuple[bytes, int, int]]:
    """What tells each page from all others of its bundle: id, layer, and how many before it had the same."""
    seen: Counter[tuple[bytes, int]] = Counter()
    for page, layer in zip(index.ids, index.layers.tolist(), strict=True):
        key = page.tobytes(), layer
        yield *key, seen[key]
        seen[key] += 1


def pages_of(bundle: Bundle, task: str, numbers: npt.NDArray[np.int64]) -> Pages:
    """A task's pages by these numbers, ascending."""
    return np.sort(numbers[bundle.pages_of(task)])

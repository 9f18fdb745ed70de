"""What has become of a bundle since an engine opened it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from weightpager.bundle import Bundle
from weightpager.bundle.format import row_table
from weightpager.bundle.format.names import MODEL, RESIDENT, private_file
from weightpager.errors import BundleError
from weightpager.graph.file import kind_of_file


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
        _check_continues(old, new)
        both = [name for name in new.tasks if name in old.tasks]
        return cls(
            tuple(name for name in new.tasks if name not in old.tasks),
            tuple(name for name in old.tasks if name not in new.tasks),
            tuple(name for name in both if _fingerprint(old, name) != _fingerprint(new, name)),
        )


def _check_continues(old: Bundle, new: Bundle) -> None:
    """See that an engine can go from one state of a bundle to another.

    Raises:
        BundleError: they aren't of the same model, or have pages of another size.
    """
    for what in ("block", "layout", "dtype", "layers", "weights", "pictures"):
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
    """Hashes of graphs by file: tasks of another kind bring another one, or a later compile does."""
    return {name: entry.blake3 for name, entry in bundle.manifest.files.items() if kind_of_file(name) is not None}


def _fingerprint(bundle: Bundle, task: str) -> bytes:
    """A hash of all that a task's outputs depend on, wherever its pages lie."""
    whole = blake3(bundle.task(task).dump())
    whole.update(bundle.entry(private_file(task)).blake3.encode())
    whole.update(bundle.pages.ids[bundle.low_rank_pages(task)].tobytes())
    for table in bundle.tables(task).values():
        page, place = np.divmod(table.locations, bundle.manifest.blocks_per_page)
        for array in (table.crow_indices, table.col_indices, bundle.pages.ids[page], place):
            whole.update(np.ascontiguousarray(array).tobytes())
    return bytes(whole.digest())

"""What rivals read: the bundle's own tasks as one checkpoint each, dense and sparse.

They are safetensors files, as people keep them, laid out so that the fastest read can use them: the header is padded,
as the format allows, so that the first tensor starts on a boundary of direct I/O.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor

from weightpager.backends.torch.export import dense_weights
from weightpager.bundle import BlockTable, Bundle
from weightpager.bundle.format.block_table import FIELDS
from weightpager.bundle.format.names import RESIDENT
from weightpager.machine.storage import ALIGNMENT
from weightpager.page_dtype import page_content
from weightpager.progress import Progress
from weightpager.store import BlockReader
from weightpager_lab.contest.rivals.parameters import SCALE, as_shipped, private, resident

_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_REGISTER = 64
"""Bytes of the widest one."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: ``start`` and ``end`` in bytes from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class CheckpointFile:
    """A file, its size in bytes, and where its tensors lie."""

    path: Path
    bytes: int
    places: Mapping[str, Place]

    def views(self, buffer: memoryview, *, base: int = 0) -> dict[str, Tensor]:
        """The tensors in a buffer that holds the file from byte ``base`` on; they share its memory."""
        whole = torch.frombuffer(buffer, dtype=torch.uint8)
        return {name: _view(whole, place, base) for name, place in self.places.items()}


def _view(whole: Tensor, place: Place, base: int) -> Tensor:
    return whole[place.start - base : place.end - base].view(place.dtype).view(place.shape)


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor]) -> CheckpointFile:
    """Write tensors so that each is aligned, `blocks` first; on disk afterwards.

    Those of whole registers come before the others, and of these those of the largest elements: torch 2.15's int8
    product crashes on a weight that doesn't begin at a register's multiple.

    Raises:
        OSError: the storage refused it.
    """

    def place(name: str) -> tuple[bool, bool, int, str]:
        tensor = tensors[name]
        return name != "blocks", tensor.nbytes % _REGISTER != 0, -tensor.element_size(), name

    order = sorted(tensors, key=place)
    places, entries, end = {}, {}, 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        places[name] = Place(tensor.dtype, tuple(tensor.shape), start, end)
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT - 8
    with path.open("wb") as file:
        file.write(padded.to_bytes(8, "little") + text.ljust(padded))
        for name in order:
            tensor = tensors[name].detach().contiguous()
            flat = tensor.as_strided((tensor.numel(),), (1,))  # a lone number may have any stride
            file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
    first = padded + 8
    moved = {name: Place(p.dtype, p.shape, p.start + first, p.end + first) for name, p in places.items()}
    return CheckpointFile(path, first + end, moved)


def open_checkpoint(path: Path) -> CheckpointFile:
    """The layout of a file that `write_checkpoint` wrote."""
    dtypes = {name: dtype for dtype, name in _NAMES.items()}
    with path.open("rb") as file:
        first = 8 + int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(first - 8))
        size = os.fstat(file.fileno()).st_size
    places = {
        name: Place(dtypes[e["dtype"]], tuple(e["shape"]), first + e["data_offsets"][0], first + e["data_offsets"][1])
        for name, e in entries.items()
    }
    return CheckpointFile(path, size, places)


BLOCKS = "blocks"
"""The tensor of a sparse checkpoint that holds its blocks, as pages without gaps: uint8 [pages, page_bytes]."""


def dense_path(folder: Path, task: str) -> Path:
    """A task's dense checkpoint: every parameter of its model but its few private ones."""
    return folder / f"{task}.dense.safetensors"


def sparse_path(folder: Path, task: str) -> Path:
    """A task's sparse checkpoint: every parameter of its model, paged weights as kept blocks and their tables."""
    return folder / f"{task}.sparse.safetensors"


def dense_bytes(bundle: Bundle) -> int:
    """About what one task's dense checkpoint takes on disk."""
    paged = sum(weight.out_features * weight.in_features for weight in bundle.manifest.weights)
    return paged * torch.bfloat16.itemsize + bundle.entry(RESIDENT).bytes


def paged_bytes(file: CheckpointFile, bundle: Bundle) -> int:
    """What paged weights take in a checkpoint: dense ones with their scales, or kept blocks."""
    paged = {BLOCKS, *(f"{name}{end}" for name in _names(bundle) for end in (".weight", SCALE))}
    return sum(place.end - place.start for name, place in file.places.items() if name in paged)


def write_sparse(bundle: Bundle, tasks: Sequence[str], folder: Path, progress: Progress) -> None:
    """Write these tasks' sparse checkpoints.

    Raises:
        BundleError, StoreError: the bundle is damaged.
        OSError: the storage refused it.
    """
    for done, task in enumerate(tasks):
        progress("write sparse checkpoints", done, len(tasks))
        blocks, tables = compact(bundle, task)
        tensors = {BLOCKS: blocks, **resident(bundle), **private(bundle, task)}
        for name, table in tables.items():
            tensors |= {f"{name}.{field}": torch.from_numpy(getattr(table, field)) for field in FIELDS}
        write_checkpoint(sparse_path(folder, task), tensors)
    progress("write sparse checkpoints", len(tasks), len(tasks))


def write_dense(bundle: Bundle, tasks: Sequence[str], folder: Path, progress: Progress, *, distinct: bool) -> None:
    """Write a dense checkpoint for each task: all that tasks share, the first task's paged weights in all of them.

    Only their size and place matter. Errors are those of `write_sparse`.

    Args:
        bundle: of the tasks.
        tasks: their names.
        folder: to write to.
        progress: of the writing.
        distinct: whether each is a file of its own, which a page cache holds for itself; or else all are one.
    """
    first, *others = (dense_path(folder, task) for task in tasks)
    progress("write dense checkpoints", 0, len(tasks))
    weights = dense_weights(bundle, tasks[0])
    shared = {f"{name}.weight": as_shipped(weight) for name, weight in weights.items()}
    write_checkpoint(first, shared | resident(bundle, "bfloat16"))
    for done, path in enumerate(others, 1):
        progress("write dense checkpoints", done, len(tasks))
        if distinct:
            shutil.copyfile(first, path)
        else:
            path.hardlink_to(first)
    progress("write dense checkpoints", len(tasks), len(tasks))


def compact(bundle: Bundle, task: str) -> tuple[Tensor, dict[str, BlockTable]]:
    """A task's kept blocks packed without gaps, uint8 [pages, page_bytes], and tables that find them there.

    A picture tower's blocks come first, in pages of their own.
    """
    manifest, all_tables = bundle.manifest, bundle.tables(task)
    places, block = manifest.blocks_per_page, manifest.block_shape
    pages: list[bytes] = []
    tables: dict[str, BlockTable] = {}
    reader = BlockReader(bundle)
    try:
        for names in _tower_and_rest(bundle):
            kept = _kept({name: all_tables[name] for name in names})
            first, content = len(pages) * places, reader.read(kept)
            # A page's scales lie behind all its places, also where some are empty.
            full = np.pad(content, ((0, -len(content) % places), (0, 0))).reshape(-1, places, content.shape[1])
            pages += [page_content(blocks, block, manifest.dtype, bundle.page_bytes) for blocks in full]
            for name in names:
                crow, col, locations = (getattr(all_tables[name], field) for field in FIELDS)
                at = first + np.searchsorted(kept, locations)
                tables[name] = BlockTable(crow, col, at.astype(np.int32))
    finally:
        reader.close()
    return torch.frombuffer(bytearray(b"".join(pages)), dtype=torch.uint8).view(len(pages), -1), tables


def tower_pages(bundle: Bundle, task: str) -> int:
    """How many pages at the beginning of a sparse checkpoint's blocks are a picture tower's; 0 without one."""
    tables, (tower, _) = bundle.tables(task), _tower_and_rest(bundle)
    return -(-len(_kept({name: tables[name] for name in tower})) // bundle.manifest.blocks_per_page)


def _kept(tables: Mapping[str, BlockTable]) -> npt.NDArray[np.int64]:
    """Locations of these weights' blocks, ascending, each once."""
    locations = [table.locations for table in tables.values()]
    return np.unique(np.concatenate([np.empty(0, np.int64), *locations]))


def _tower_and_rest(bundle: Bundle) -> tuple[list[str], list[str]]:
    """Names of the paged weights of a picture tower, and of all others."""
    layers, weights = 0 if bundle.pictures is None else bundle.pictures.layers, bundle.manifest.weights
    tower = [weight.name for weight in weights if weight.layer < layers]
    return tower, [weight.name for weight in weights if weight.layer >= layers]


def split(tensors: dict[str, Tensor], bundle: Bundle) -> tuple[dict[str, BlockTable], dict[str, Tensor]]:
    """The block tables of a sparse checkpoint's tensors, which share their memory, and its other parameters."""
    tables = {name: BlockTable(*(tensors[f"{name}.{field}"].numpy() for field in FIELDS)) for name in _names(bundle)}
    used = _of_blocks(bundle)
    return tables, {name: value for name, value in tensors.items() if name not in used}


def read_tables(file: CheckpointFile, bundle: Bundle) -> dict[str, BlockTable]:
    return split(_read(file, [f"{name}.{field}" for name in _names(bundle) for field in FIELDS]), bundle)[0]


def read_shared(files: Mapping[str, CheckpointFile], bundle: Bundle) -> dict[str, Tensor]:
    """What tasks share, by canonical name, out of their sparse checkpoints: rounding it anew would take memory."""
    found: dict[str, Tensor] = {}
    for task, file in files.items():
        found |= _read(file, file.places.keys() - _of_blocks(bundle) - private(bundle, task).keys() - found.keys())
    return found


def _read(file: CheckpointFile, names: Iterable[str]) -> dict[str, Tensor]:
    with safe_open(file.path, framework="pt") as tensors:
        return {name: tensors.get_tensor(name).clone() for name in names}


def _of_blocks(bundle: Bundle) -> set[str]:
    """Names in a sparse checkpoint of all that its paged weights take."""
    return {BLOCKS, *(f"{name}.{field}" for name in _names(bundle) for field in FIELDS)}


def _names(bundle: Bundle) -> list[str]:
    return [weight.name for weight in bundle.manifest.weights]


def enough_room(folder: Path, needed: int) -> bool:
    return shutil.disk_usage(folder).free > 2 * needed

"""Checkpoints as people keep them, one safetensors file for a task, laid out so that the fastest read can use it.

The header is padded, as the format allows, so that the first tensor starts on a boundary of direct I/O.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightpager.machine.direct_file import ALIGNMENT

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
            file.write(tensors[name].detach().contiguous().flatten().view(torch.uint8).numpy().data)
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

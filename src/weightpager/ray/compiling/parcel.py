"""Jobs and what they find on their way between processes: what tensors hold travels apart, and once."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from ray import cloudpickle

Bytes = npt.NDArray[np.uint8]
Place = TypeVar("Place")

_LINE = 64
"""Bytes of a cache line."""


@dataclass(frozen=True)
class Parcel(Generic[Place]):
    """A pickled object, without what its tensors hold.

    Attributes:
        pickled: the rest of the object.
        places: the places where the bytes of each of its tensors' storages are.
        starts: each storage's address modulo 64. The copy gets the same one, since kernels round differently where
            values begin elsewhere.
        bytes: bytes of all storages together.
    """

    pickled: bytes
    places: Sequence[Place]
    starts: Sequence[int]
    bytes: int


def pack(found: Any, put: Callable[[Bytes], Place]) -> Parcel[Place]:
    """Take an object apart; storages that tensors share stay shared.

    Args:
        found: to pickle; its tensors are on the CPU.
        put: takes a storage's bytes, which may change later, and says where they are from then on.
    """
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(found)  # type: ignore[no-untyped-call]
    contents = [_content(storage) for storage in pickler.storages]
    starts = [storage.data_ptr() % _LINE for storage in pickler.storages]
    return Parcel(file.getvalue(), [put(content) for content in contents], starts, sum(c.nbytes for c in contents))


def unpack(parcel: Parcel[Any], contents: Sequence[Bytes]) -> Any:
    """The object again, over copies of its storages' contents."""
    storages = [_storage(content, start) for content, start in zip(contents, parcel.starts, strict=True)]
    return _Unpickler(io.BytesIO(parcel.pickled), storages).load()


class _Pickler(cloudpickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)  # type: ignore[no-untyped-call]
        self.storages: list[torch.UntypedStorage] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, found: Any) -> tuple[int, torch.dtype] | None:
        if not isinstance(found, torch.storage.TypedStorage):
            return None
        storage = found._untyped_storage
        number = self._numbers.setdefault(storage.data_ptr() or -id(storage), len(self.storages))
        if number == len(self.storages):
            self.storages.append(storage)
        return number, found.dtype


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, storages: Sequence[torch.UntypedStorage]) -> None:
        super().__init__(file)
        self._storages = storages

    def persistent_load(self, found: tuple[int, torch.dtype]) -> torch.storage.TypedStorage:
        number, dtype = found
        typed: Any = torch.storage.TypedStorage  # untyped, in mypy's sense
        return cast(torch.storage.TypedStorage, typed(wrap_storage=self._storages[number], dtype=dtype, _internal=True))


def _content(storage: torch.UntypedStorage) -> Bytes:
    """A storage's bytes, not copied."""
    content: Bytes = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return content


def _storage(content: Bytes, start: int) -> torch.UntypedStorage:
    """A storage of its own with these bytes, which begins at ``start`` in a cache line."""
    room = np.empty(content.nbytes + _LINE, np.uint8)
    first = (start - room.ctypes.data) % _LINE
    aligned = room[first : first + content.nbytes]
    aligned[:] = content
    return torch.from_numpy(aligned).untyped_storage()

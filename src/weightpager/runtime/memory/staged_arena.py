"""The arena of a device with memory of its own: pages pass through buffers in host memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightpager.errors import StoreError
from weightpager.runtime.memory.page_arena import Event, Stage
from weightpager.store import most_pages


class SlotMemory(Protocol):
    """The bytes of an arena's slots. `Arena` says what its methods do.

    Attributes:
        pages: uint8 [capacity, page_bytes].
        capacity: slots that there are.
        elastic: whether slots that are released give memory back.
    """

    pages: Tensor
    capacity: int
    elastic: bool

    def commit(self, slots: Iterable[int]) -> None:
        """Implements `Arena.commit`."""

    def release(self, slots: Iterable[int]) -> None:
        """Implements `Arena.release`."""


class Copier(Protocol):
    """A device's memory and the order of what happens to it. Safe to use from several threads.

    Kernels run in streams of their own, in which they may be late: what a kernel reads must stay as it was when it was
    launched, until it has run.

    Attributes:
        device: whose memory it is.
    """

    device: torch.device

    def memory(self, capacity: int, slots: int, page_bytes: int) -> SlotMemory:
        """Slots on the device, zero or more bytes of which are taken at once.

        Raises:
            OSError, torch.OutOfMemoryError: there isn't so much.
        """

    def buffer(self, size: int) -> Tensor:
        """Host memory that copies can start from, uint8 [size], at an address that direct reads accept."""

    def note_read(self) -> None:
        """This thread has just launched kernels that read slots."""

    def reads(self) -> Sequence[Event]:
        """Events after which all kernels that have been noted until now have read their slots."""

    def start(self, copies: Callable[[], None], after: Sequence[Event]) -> Event:
        """Begin work on slots once events have passed, in the order of calls. Returns the event that ends it."""


_NOTHING = -1
"""Stands for no slot and for no page."""


@dataclass(frozen=True)
class Staging:
    """Implements `ArenaSource`: how pages reach a device.

    Attributes:
        copier: the device's copier.
        buffers: reads that may be between storage and device at once.
    """

    copier: Copier
    buffers: int

    def bytes(self, page_bytes: int) -> int:
        """Host memory that it takes: each buffer has room for the longest read."""
        return self.buffers * most_pages(page_bytes) * page_bytes

    def arena(self, capacity: int, slots: int, page_bytes: int) -> StagedArena:
        try:
            return StagedArena(capacity, slots, page_bytes, self)
        except torch.OutOfMemoryError as error:
            raise OSError(str(error)) from error


class StagedArena:
    """Implements `PageArena`. A page is read and checked in a staging buffer, and copied to the device from there.

    The table on the device changes with the slots, in the same order: it names a page once its bytes are in the slot,
    and no longer when the slot is about to be filled with another. So a kernel that was launched before its page was
    evicted finds the page as it was: slots are written to only after the events of such kernels.
    """

    together = 1

    def __init__(self, capacity: int, slots: int, page_bytes: int, staging: Staging) -> None:
        """Take memory on the device and for the buffers.

        Args:
            capacity: slots to reserve for, if the device can reserve what it doesn't take yet.
            slots: to commit.
            page_bytes: bytes of a page.
            staging: how pages get there.

        Raises:
            OSError, torch.OutOfMemoryError: there isn't so much.
        """
        self.page_bytes = page_bytes
        self._copier = staging.copier
        self._memory = self._copier.memory(capacity, slots, page_bytes)
        self.pages, self.capacity, self.elastic = self._memory.pages, self._memory.capacity, self._memory.elastic
        ring = self._copier.buffer(staging.bytes(page_bytes))
        self._free = list(ring.view(staging.buffers, -1, page_bytes))  # each uint8 [pages of a read, page_bytes]
        self._order = threading.Lock()  # the device does what it is told in the order of the books below
        self._table = torch.empty(0, dtype=torch.int32)
        self._slot_of: npt.NDArray[np.int32] = np.empty(0, np.int32)  # what the table on the device will say
        self._page_of = np.full(self.capacity, _NOTHING, np.int64)

    @property
    def device(self) -> str:
        return str(self._copier.device)

    @property
    def untouched(self) -> int:
        """No bytes: the memory isn't the host's."""
        return 0

    def table(self, page_table: npt.NDArray[np.int32]) -> Tensor:
        self._slot_of = np.full_like(page_table, _NOTHING)
        self._table = torch.from_numpy(self._slot_of.copy()).to(self._copier.device)
        return self._table

    def stage(self) -> Stage | None:
        with self._order:
            return _Staged(self, self._free.pop()) if self._free else None

    @property
    def host(self) -> None:
        return None

    @property
    def staged(self) -> StagedArena:
        return self

    def note_read(self) -> None:
        self._copier.note_read()

    def reads(self) -> Sequence[Event]:
        return self._copier.reads()

    def content(self, slot: int) -> memoryview:
        return self.pages[slot].cpu().numpy().data

    def replace(self, slot: int, content: memoryview) -> None:
        source = torch.frombuffer(content, dtype=torch.uint8)
        self._copier.start(lambda: self._put(slot, source), ()).synchronize()

    def commit(self, slots: Iterable[int]) -> None:
        self._memory.commit(slots)

    def release(self, slots: Iterable[int]) -> None:
        gone = list(slots)
        with self._order:
            pages = self._forget(gone)
            cleared = self._copier.start(lambda: self._set(pages, _NOTHING), self.reads())
        if self.elastic:
            cleared.synchronize()
            self._memory.release(gone)

    def place(self, rows: Tensor, slots: Mapping[int, int], after: Sequence[Event]) -> None:
        """Copy ``rows`` [len(slots), page_bytes] into slots. See `Stage.place`."""
        try:
            with self._order:
                # Else nobody can be reading: neither a slot, nor the table's entry for a page that had this number.
                filled = any(
                    self._page_of[slot] != _NOTHING or self._slot_of[page] != _NOTHING for page, slot in slots.items()
                )
                gone = self._forget(slots.values())
                for page, slot in slots.items():
                    self._slot_of[page], self._page_of[slot] = slot, page
                copied = self._copier.start(lambda: self._copy(gone, rows, slots), after if filled else ())
            copied.synchronize()
        except RuntimeError as error:  # torch's, of any device
            raise StoreError(f"cannot copy pages to {self._copier.device}: {error}") from error

    def give_back(self, rows: Tensor) -> None:
        with self._order:
            self._free.append(rows)

    def _forget(self, slots: Iterable[int]) -> list[int]:
        """Strike these slots' pages off the books. Returns those that the table on the device has to forget."""
        gone = []
        for slot in slots:
            page = int(self._page_of[slot])
            self._page_of[slot] = _NOTHING
            if page != _NOTHING and self._slot_of[page] == slot:  # else it has come back elsewhere
                self._slot_of[page] = _NOTHING
                gone.append(page)
        return gone

    def _copy(self, gone: Iterable[int], rows: Tensor, slots: Mapping[int, int]) -> None:
        self._set(gone, _NOTHING)
        for row, slot in zip(rows, slots.values(), strict=True):
            self._put(slot, row)
        for page, slot in slots.items():
            self._set([page], slot)

    def _put(self, slot: int, content: Tensor) -> None:
        self.pages[slot].copy_(content, non_blocking=True)

    def _set(self, pages: Iterable[int], slot: int) -> None:
        for page in pages:
            self._table[page].fill_(slot)


class _Staged:
    def __init__(self, arena: StagedArena, buffer: Tensor) -> None:
        self._arena = arena
        self._buffer = buffer
        self.rows: npt.NDArray[np.uint8] = buffer.numpy()

    def place(self, slots: Mapping[int, int], after: Sequence[Event]) -> None:
        self._arena.place(self._buffer[: len(slots)], slots, after)

    def give_back(self) -> None:
        self._arena.give_back(self._buffer)

"""What holds pages, wherever it lies: the contract of `Arena` and `StagedArena`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Event(Protocol):
    """A point in a stream's work; `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether all work before this point is done."""

    def synchronize(self) -> None:
        """Wait until all work before this point is done."""


class DeviceStream(Hashable, Protocol):
    """Work that a device does in order; `torch.cuda.Stream` is one. It takes events of its own kind only."""

    def record_event(self, event: Any = None) -> Any:
        """The event, a new one if None, now stands after all that the stream has been given so far."""

    def wait_event(self, event: Any) -> None:
        """What the stream is given from now on begins only after the event."""


class ReadFence:
    """Remembers the streams' last reads.

    One event a stream is recorded again and again, until somebody has asked for it: then it must not move any more.
    """

    def __init__(self, current_stream: Callable[[], DeviceStream]) -> None:
        """Nothing has been launched.

        Args:
            current_stream: gives the stream in which the calling thread launches kernels.
        """
        self._current_stream = current_stream
        self._lock = threading.Lock()
        self._latest: dict[DeviceStream, Event] = {}
        self._asked_for: list[Event] = []

    def note(self) -> None:
        """The calling thread has launched kernels that read slots."""
        stream = self._current_stream()
        with self._lock:
            self._latest[stream] = stream.record_event(self._latest.get(stream))

    def events(self) -> Sequence[Event]:
        """Events after which all reads noted until now have run, without events that have passed."""
        with self._lock:
            self._asked_for += self._latest.values()
            self._latest = {}
            self._asked_for = [event for event in self._asked_for if not event.query()]
            return tuple(self._asked_for)


class HostMemory(Protocol):
    """Host memory whose slots are filled by reads: a host's arena, or a `PageBuffer`."""

    page_bytes: int

    def address(self, slots: npt.NDArray[np.int64]) -> int:
        """Where slot 0 begins, for a caller that fills these slots."""

    def views(self, slots: Sequence[int]) -> list[memoryview]:
        """The bytes of slots, to be filled."""


class Stage(Protocol):
    """A buffer in host memory that pages pass through on their way to a device.

    Attributes:
        rows: uint8 [pages, page_bytes], aligned as direct reads want it; as many as one read covers at most.
    """

    rows: npt.NDArray[np.uint8]

    def place(self, slots: Mapping[int, int], after: Sequence[Event]) -> None:
        """What was read is in the slots, and the table that kernels see says so, when this returns.

        Args:
            slots: page number → slot, in the order of the rows.
            after: no slot is written to before these have passed.

        Raises:
            StoreError: the device failed; the slots hold nothing that may be used.
        """

    def give_back(self) -> None:
        """The buffer isn't needed any more. To be called once."""


class StagedMemory(Protocol):
    """A device's memory, which pages reach through stages."""

    page_bytes: int

    def stage(self) -> Stage | None:
        """One more buffer. None if others must be given back first: this never waits."""

    def reads(self) -> Sequence[Event]:
        """Events after which all kernels noted until now have run."""


class PageArena(Protocol):
    """The one allocation that holds pages, at an address that stays.

    Safe to use from several threads, as long as each slot has one owner at a time.

    Attributes:
        pages: uint8 [capacity, page_bytes], where kernels read: an array on the host, a tensor on another device.
        page_bytes: bytes of a page.
        capacity: slots that there are.
        elastic: whether `release` gives memory back; otherwise all of it is taken from the beginning.
        together: slots that should be released together, counted from slot 0, since the machine's pages in which they
            lie have no other slots; 1 where each slot is for itself.
    """

    page_bytes: int
    pages: Any
    capacity: int
    elastic: bool
    together: int

    @property
    def device(self) -> str:
        """Where it lies, as torch names devices."""

    @property
    def untouched(self) -> int:
        """Bytes of committed slots that nobody has asked for yet: the host has still to give their memory."""

    @property
    def host(self) -> HostMemory | None:
        """Itself, if its slots are filled in the host's memory."""

    @property
    def staged(self) -> StagedMemory | None:
        """Itself, if they are filled through stages."""

    def table(self, page_table: npt.NDArray[np.int32]) -> Any:
        """Where kernels look pages up, int32 [pages]: follows the block manager's table. To be called once."""

    def note_read(self) -> None:
        """This thread has launched kernels that read slots. They may be late."""

    def content(self, slot: int) -> memoryview:
        """The bytes of a slot that is resident."""

    def replace(self, slot: int, content: memoryview) -> None:
        """Give a slot that is resident other bytes, at once."""

    def commit(self, slots: Iterable[int]) -> None:
        """Let slots be filled from now on."""

    def release(self, slots: Iterable[int]) -> None:
        """Give slots up that nobody uses any more. They must not be filled until they are committed again."""


class ArenaSource(Protocol):
    """Makes an arena on a device with memory of its own."""

    def bytes(self, page_bytes: int) -> int:
        """Host memory that pages take on their way."""

    def arena(self, capacity: int, slots: int, page_bytes: int) -> PageArena:
        """Take memory on the device and on the host.

        Args:
            capacity: slots to reserve for, if the device can reserve what it doesn't take yet.
            slots: to commit.
            page_bytes: bytes of a page.

        Raises:
            OSError: there isn't so much.
        """

"""How bytes get from the host to the memory that kernels read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from weightpager.runtime.memory.read_fence import Event


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

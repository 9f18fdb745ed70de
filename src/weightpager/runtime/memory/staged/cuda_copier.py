"""A CUDA device's memory: pinned buffers, and a stream beside those that compute."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from weightpager.errors import TaskNotActiveError
from weightpager.runtime.memory.read_fence import Event, ReadFence, Stream


class CudaMemory:
    """Slots in one tensor, whose memory is taken at once and stays.

    Attributes:
        pages: uint8 [capacity, page_bytes].
        capacity: slots that there are.
        elastic: False.
    """

    elastic = False

    def __init__(self, slots: int, page_bytes: int, device: torch.device) -> None:
        self.pages: Tensor = torch.empty((slots, page_bytes), dtype=torch.uint8, device=device)
        torch.cuda.synchronize(device)  # whose memory this was may still be computing with it, in another stream
        self.capacity = slots

    def commit(self, slots: Iterable[int]) -> None:
        """Nothing to do."""

    def release(self, slots: Iterable[int]) -> None:
        """Nothing can be given back."""


class CudaCopier:
    """Implements `Copier`. Copies run in a stream of their own, beside whatever streams compute."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._fence = ReadFence(lambda: torch.cuda.current_stream(device))

    def memory(self, capacity: int, slots: int, page_bytes: int) -> CudaMemory:  # noqa: ARG002 - the protocol's
        """For the slots that are used now: device memory can't be reserved without taking it."""
        return CudaMemory(slots, page_bytes, self.device)

    def buffer(self, size: int) -> Tensor:
        """Pinned: else a copy would go through another buffer first, and the host would wait for it."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def note_read(self) -> None:
        """Implements `Copier.note_read`.

        Raises:
            TaskNotActiveError: the kernels are launched into a CUDA graph.
        """
        if torch.cuda.is_current_stream_capturing():
            # Nothing would know of the reads of a replay; and an event that a graph holds can't be waited for.
            raise TaskNotActiveError(
                "a CUDA graph can't hold paged layers: it would run them without asking whether the task's pages are "
                "there. Run the task outside of graphs; for torch.compile that is any mode without CUDA graphs"
            )
        self._fence.note()

    def reads(self) -> Sequence[Event]:
        return self._fence.events()

    def start(self, copies: Callable[[], None], after: Sequence[Event]) -> Event:
        with torch.cuda.stream(self._stream):  # type: ignore[arg-type]
            for event in after:
                self._stream.wait_event(event)
            copies()
            # Blocking: a pager's thread that waits must not take a core from those that read and compute.
            done: Event = self._stream.record_event(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
            return done

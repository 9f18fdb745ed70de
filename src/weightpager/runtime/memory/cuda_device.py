"""The CUDA devices of this machine, as arenas are made on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from weightpager.errors import ConfigError, TaskNotActiveError
from weightpager.runtime.memory.page_arena import DeviceStream, Event, ReadFence
from weightpager.runtime.memory.staged_arena import Staging
from weightpager.store import most_pages


class CudaMemory:
    """Slots in one tensor, whose memory is taken at once and stays."""

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
        self._stream: DeviceStream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._fence = ReadFence(lambda: torch.cuda.current_stream(device))

    def memory(self, capacity: int, slots: int, page_bytes: int) -> CudaMemory:  # noqa: ARG002 - the protocol's
        """For the slots that are used now: device memory can't be reserved without taking it."""
        return CudaMemory(slots, page_bytes, self.device)

    def buffer(self, size: int) -> Tensor:
        """Pinned: else a copy would go through another buffer first, and the host would wait for it."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def note_read(self) -> None:
        """Implements `Copier.note_read`. Raises `TaskNotActiveError` if the kernels are launched into a CUDA graph."""
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


_STAGING_BYTES = 8 << 20
"""More buffers than fill this aren't used, however many reads there may be in flight."""


def cuda_staging(device: str, page_bytes: int, reads: int) -> Staging:
    """See `weightpager.runtime.memory.memory_budget.staging`."""
    _check(device)
    longest = most_pages(page_bytes) * page_bytes
    return Staging(CudaCopier(_numbered(device)), max(1, min(reads, _STAGING_BYTES // longest)))


def _numbered(device: str) -> torch.device:
    stated = torch.device(device)
    return stated if stated.index is not None else torch.device("cuda", torch.cuda.current_device())


def _check(device: str) -> None:
    if torch.version.cuda is None:
        found = f"torch {torch.__version__}, which is built without CUDA"
    elif not torch.cuda.is_available():
        found = f"torch {torch.__version__}, which sees no CUDA device"
    elif (torch.device(device).index or 0) >= torch.cuda.device_count():
        found = f"devices cuda:0 to cuda:{torch.cuda.device_count() - 1}"
    else:
        return
    raise ConfigError(f"device: expected 'cpu' or a CUDA device of this machine, got {device!r} and found {found}")

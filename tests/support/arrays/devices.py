"""Devices without a GPU: one on which all happens at once, and one whose streams are threads, which do it later."""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable, Iterable, Sequence

import torch

from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.memory.page_arena import Event, ReadFence


class Done:
    """The event of something that has been done."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class TensorMemory:
    """Slots of host memory, as a tensor."""

    elastic = True

    def __init__(self, capacity: int, slots: int, page_bytes: int) -> None:
        self._arena = Arena(capacity, slots, page_bytes)
        self.pages = torch.from_numpy(self._arena.pages)
        self.capacity = self._arena.capacity

    def commit(self, slots: Iterable[int]) -> None:
        self._arena.commit(slots)

    def release(self, slots: Iterable[int]) -> None:
        self._arena.release(slots)


class HostCopier:
    """Host memory, in which everything happens at once."""

    device = torch.device("cpu")

    def memory(self, capacity: int, slots: int, page_bytes: int) -> TensorMemory:
        return TensorMemory(capacity, slots, page_bytes)

    def buffer(self, size: int) -> torch.Tensor:
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)

    def note_read(self) -> None:
        pass

    def reads(self) -> Sequence[Event]:
        return ()

    def start(self, copies: Callable[[], None], after: Sequence[Event]) -> Event:
        for event in after:
            event.synchronize()
        copies()
        return Done()


class LateEvent:
    def __init__(self) -> None:
        self._passed = threading.Event()

    def move(self) -> None:
        """Stand at a later point, which has not passed."""
        self._passed = threading.Event()

    def marker(self) -> Callable[[], None]:
        return self._passed.set

    def query(self) -> bool:
        return self._passed.is_set()

    def synchronize(self) -> None:
        assert self._passed.wait(60)


class LateStream:
    def __init__(self) -> None:
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._may_run = threading.Event()
        self._may_run.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def launch(self, kernel: Callable[[], None]) -> None:
        """Returns at once."""
        self._work.put(kernel)

    def hold(self) -> None:
        """Begin nothing until `go_on`."""
        self._may_run.clear()

    def go_on(self) -> None:
        self._may_run.set()

    def record_event(self, event: LateEvent | None = None) -> LateEvent:
        event = LateEvent() if event is None else event
        event.move()
        self.launch(event.marker())
        return event

    def wait_event(self, event: Event) -> None:
        self.launch(event.synchronize)

    def finish(self) -> None:
        self.go_on()
        self._work.put(None)
        self._thread.join(60)

    def _run(self) -> None:
        while (kernel := self._work.get()) is not None:
            assert self._may_run.wait(60)
            kernel()


class LateCopier:
    """Copies late, beside one stream that computes; ``failing`` copies fail."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.computing, self.copying = LateStream(), LateStream()
        self.failing = 0
        self._fence = ReadFence(lambda: self.computing)

    def memory(self, capacity: int, slots: int, page_bytes: int) -> TensorMemory:
        return HostCopier().memory(capacity, slots, page_bytes)

    def buffer(self, size: int) -> torch.Tensor:
        return HostCopier().buffer(size)

    def note_read(self) -> None:
        self._fence.note()

    def reads(self) -> Sequence[Event]:
        return self._fence.events()

    def start(self, copies: Callable[[], None], after: Sequence[Event]) -> Event:
        if self.failing:
            self.failing -= 1
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        for event in after:
            self.copying.wait_event(event)
        self.copying.launch(copies)
        return self.copying.record_event()

    def finish(self) -> None:
        self.computing.finish()
        self.copying.finish()

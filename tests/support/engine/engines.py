"""Engines whose storage hangs on demand, and threads that use them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import weightpager as wp
from faults import HangingStore
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.runtime.prefetch.prefetch_trial import PrefetchTrial
from weightpager.store import LocalStore


@contextmanager
def hanging(bundle: Bundle, **config: object) -> Iterator[tuple[wp.Engine, HangingStore]]:
    store = HangingStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(**config), lambda _: store) as engine:  # type: ignore[arg-type]
        try:
            yield engine, store
        finally:
            store.resume()


class InThread(threading.Thread):
    """Runs something elsewhere; `result` waits and gives what it returned or raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work, self.found, self.error = work, None, None
        self.start()

    def run(self) -> None:
        try:
            self.found = self.work()
        except Exception as error:  # noqa: BLE001 - whoever asks for the result raises it
            self.error = error

    def result(self) -> object:
        self.join(60)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error
        return self.found


def settle(engine: wp.Engine) -> None:
    """Wait until no page is on its way."""
    end = time.monotonic() + 20
    while engine.blocks.loading and time.monotonic() < end:
        time.sleep(0.005)
    check_pages(engine)


class Always(PrefetchTrial):
    """Whatever is named is prefetched, though it doesn't pay."""

    def dwell(self, *_: object) -> None: ...

    def leave(self) -> None: ...

    def switch(self, *_: object) -> None: ...


def check_pages(engine: wp.Engine) -> None:
    """The tables agree with each other, and the arena with them; pages may be prefetched at any time."""
    with engine._residency._lock:
        engine.blocks.check_integrity()
        assert engine.verify() == []

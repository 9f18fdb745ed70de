"""Transfers over several connections, tried again where something broke, given up where nothing moves any more."""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from weightpager.delivery.sources.source import TransferError

TRIES = 5
"""A pull gives up after so many tries in a row that brought no byte of use."""

FIRST_WAIT = 0.2
"""Seconds before the second try. Each further wait is twice as long."""


class Transfer(Protocol):
    """Something to fetch, which keeps what has come when it is cut off."""

    def attempt(self) -> None:
        """Fetch what is left.

        Raises:
            TransferError: it broke; another try may do.
        """

    def left(self) -> int:
        """Bytes that are left."""


class _Run:
    """Threads that share a queue of transfers; the first error that lasts stops all."""

    def __init__(self, transfers: Iterable[Transfer]) -> None:
        self._waiting = deque(transfers)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.failure: BaseException | None = None

    def work(self) -> None:
        """Take transfers until none is left."""
        while not self._stopped.is_set():
            with self._lock:
                if not self._waiting:
                    return
                transfer = self._waiting.popleft()
            try:
                self._bring(transfer)
            except BaseException as error:  # noqa: BLE001 - whoever waits for all raises it
                self.failure = self.failure or error
                self.stop()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopped.set()

    def _bring(self, transfer: Transfer) -> None:
        tries, left = 0, transfer.left()
        while not self._stopped.is_set():
            try:
                transfer.attempt()
            except TransferError:
                tries = 1 if transfer.left() < left else tries + 1
                left = transfer.left()
                if tries >= TRIES:
                    raise
                self._stopped.wait(FIRST_WAIT * 2 ** (tries - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
            else:
                return


def bring(transfers: Iterable[Transfer], connections: int) -> None:
    """Carry out all transfers.

    Raises:
        DeliveryError: of the first one that failed for good. What others have brought stays.
    """
    run = _Run(transfers)
    threads = [threading.Thread(target=run.work, daemon=True) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) and run.failure is None:
            threads[0].join(0.05) if threads[0].is_alive() else time.sleep(0.005)
    finally:
        run.stop()  # whoever still waits for a server that hangs ends with its timeout, and writes only what is right
        for thread in threads:
            thread.join(1.0)
    if run.failure is not None:
        raise run.failure

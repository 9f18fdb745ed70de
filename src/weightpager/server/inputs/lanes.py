"""Texts and images on their way from a request to the queue: read in threads of their own, a piece at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from weightpager.errors import QueueFullError

_FEW = 8
"""Most texts or images of a request that isn't large by their number."""

_Tool = TypeVar("_Tool")
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")


class Lane(Generic[_Tool]):
    """One thread, and the tool that it reads with, made when it is first needed."""

    def __init__(self, name: str, make: Callable[[], _Tool]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"weightpager-{name}")
        self._make = make
        self._tool: _Tool | None = None

    async def run(self, function: Callable[[_Tool, _Item], _Found], items: Sequence[_Item]) -> list[_Found]:
        """What a function makes of each text or image, with the tool.

        Other requests are read between two of them. Once cancelled, no further one is begun.
        """
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(self._thread, self._call, function, item) for item in items]

    def close(self) -> None:
        """Begin nothing any more; what is being read goes on to its end."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _call(self, function: Callable[[_Tool, _Item], _Found], item: _Item) -> _Found:
        if self._tool is None:
            self._tool = self._make()
        return function(self._tool, item)


class TwoLanes(Generic[_Tool]):
    """One lane for what takes long to read, and one in which no request waits behind that. For the event loop only.

    Requests that are large, by their size or by their number of texts or images, hold at most a part of the queue's
    places while they are read, so that some are left for others.
    """

    def __init__(self, tool: _Tool, copied: Callable[[], _Tool], most: int) -> None:
        """Nothing is read yet.

        Args:
            tool: of the first thread.
            copied: makes the tool of the second thread when it is first needed.
            most: how many texts or images large requests may hold together while they are read. One request alone may
                hold more.
        """
        self._usual = Lane("reading", lambda: tool)
        self._large = Lane("reading-large", copied)
        self._most = most
        self._held = 0

    async def run(
        self, function: Callable[[_Tool, _Item], _Found], items: Sequence[_Item], *, large: bool = False
    ) -> list[_Found]:
        """What a function makes of each text or image of a request, in their order.

        Raises:
            QueueFullError: too much is being read.
            Exception: whatever the function raises for one of them; the later ones aren't read.
        """
        lane = self._large if large else self._usual
        if not large and len(items) <= _FEW:
            return await lane.run(function, items)
        self._check_room(len(items))
        self._held += len(items)
        try:
            return await lane.run(function, items)
        finally:
            self._held -= len(items)

    def check_room(self, count: int) -> None:
        """See that a request of so many texts or images can be read now, as far as their number tells.

        Raises:
            QueueFullError: it can't be.
        """
        if count > _FEW:
            self._check_room(count)

    def close(self) -> None:
        self._usual.close()
        self._large.close()

    def _check_room(self, count: int) -> None:
        if self._held and self._held + count > self._most:
            raise QueueFullError(f"large requests of {self._held} texts or images are being read; ask again later")

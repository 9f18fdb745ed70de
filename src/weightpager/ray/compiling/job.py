"""A job in a worker's process: take the driver's surroundings, unpack, work, pack what was found."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from weightpager.errors import WeightpagerError
from weightpager.ray.compiling.parcel import Bytes, Parcel, pack, unpack
from weightpager.ray.compiling.surroundings import Surroundings

_EVERY = 0.5
"""Seconds between two lines on the board."""


@dataclass(frozen=True)
class Found:
    """The result of a job.

    Attributes:
        value: what it returned, packed.
        seconds: the time that it took.
        steps: the last progress that was told of it; None if nothing was.
        processor: the processor of the machine that it ran on.
    """

    value: Parcel[Bytes]
    seconds: float
    steps: tuple[int, int] | None
    processor: str

    def unpacked(self) -> Any:
        """The value, in memory of this process."""
        return unpack(self.value, self.value.places)


@dataclass(frozen=True)
class Failed:
    """An error that weightpager raises on purpose, in parts, since not all can be pickled."""

    kind: type[WeightpagerError]
    arguments: tuple[Any, ...]
    fields: dict[str, Any]

    @classmethod
    def of(cls, error: WeightpagerError) -> Failed:
        """Take an error apart."""
        return cls(type(error), error.args, dict(vars(error)))

    def error(self) -> WeightpagerError:
        """The error again."""
        error = self.kind.__new__(self.kind)
        error.args = self.arguments
        vars(error).update(self.fields)
        return error


@dataclass
class _Told:
    """Notes steps on the board, at most twice a second."""

    board: Any
    number: int
    last: tuple[int, int] | None = None
    _since: float = field(default_factory=time.monotonic)

    def __call__(self, done: int, total: int) -> None:
        self.last, now = (done, total), time.monotonic()
        if now - self._since >= _EVERY:
            self._since = now
            self.board.tell.remote(self.number, done, total)


def ready() -> None:
    """Nothing; a worker that was asked has imported all that jobs need."""


def work(
    parcel: Parcel[int | Bytes], surroundings: Surroundings, board: Any, number: int, *contents: Bytes
) -> Found | Failed:
    """Do a job; ``contents`` are of its tensors' storages that aren't in the parcel, ``number`` is its on the board."""
    start, told = time.perf_counter(), _Told(board, number)
    try:
        surroundings.take(socket.gethostname())
        all_contents = [contents[place] if isinstance(place, int) else place for place in parcel.places]
        job: Callable[[_Told], Any] = unpack(parcel, all_contents)
        value = job(told)
    except WeightpagerError as error:
        return Failed.of(error)
    seconds = time.perf_counter() - start
    return Found(pack(value, lambda content: content.copy()), seconds, told.last, Surroundings.here().processor)

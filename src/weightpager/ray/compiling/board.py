"""Where workers note how far they are, for the driver to look at. It imports nothing: its process stays small."""

from __future__ import annotations


class Board:
    """The last that was told of each job."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[int, int]] = {}

    def tell(self, job: int, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a job are over."""
        self._told[job] = done, total

    def news(self) -> dict[int, tuple[int, int]]:
        """What was told since this was last asked for."""
        told, self._told = self._told, {}
        return told

"""One stay at a task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Visit:
    """A task became the current one.

    Attributes:
        task: its name.
        start: seconds; it stayed until the next visit.
        resumed: nobody knows what was between the visit before and this one, since the program had ended: no switch
            leads here, and the visit before has no known length.
    """

    task: str
    start: float
    resumed: bool = False

    def row(self) -> dict[str, object]:
        """As a row of a trace file, which ``weightpager.transitions`` reads."""
        return {"task": self.task, "time": self.start} | ({"resumed": True} if self.resumed else {})

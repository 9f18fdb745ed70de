"""Says in the log, before the kernel acts, that a budget will take more memory than there is."""

from __future__ import annotations

import logging
from collections.abc import Callable

from weightpager.config import format_enough, format_room, format_size
from weightpager.machine.memory import Memory, read_memory
from weightpager.runtime.memory.memory_budget import MemoryBudget

_log = logging.getLogger(__name__)


class MemoryWatch:
    """Compares what a budget has still to take with what the machine, and this process's control group, have left.

    It only warns: how much there is may change at any time, and page cache and swap may give more. Each cause is said
    once, and again only if it has been absent between. What the kernel doesn't tell isn't warned of.

    Args:
        memory: whose budget it is.
        read: the machine's memory.
    """

    def __init__(self, memory: MemoryBudget, read: Callable[[], Memory] = read_memory) -> None:
        self._memory = memory
        self._read = read
        self._said: set[str] = set()

    def available(self) -> int | None:
        """Bytes that this process could take now; None if unknown."""
        return self._read().usable_bytes

    def check(self, outstanding: int) -> None:
        """Warn if less than ``outstanding`` bytes, which the budget will still take, can be had."""
        memory = self._read()
        self._compare(
            "machine", outstanding, memory.available_bytes, "this machine has {} available", "free some memory"
        )
        limit = "" if memory.limit_bytes is None else f" (the tightest is {format_room(memory.limit_bytes)})"
        leave = f"the limits of this process's control group and those around it{limit} leave {{}}"
        self._compare("group", outstanding, memory.left_bytes, leave, "raise the limit")

    def _compare(self, cause: str, outstanding: int, left: int | None, finding: str, way_out: str) -> None:
        if left is None or outstanding <= left:
            self._said.discard(cause)
            return
        if cause in self._said:
            return
        self._said.add(cause)
        budget, most = self._memory.budget, self._memory.budget - (outstanding - left)
        least = self._memory.smallest_budget(self._memory.needs.least_pages)
        advice = f"state a budget of at most {format_room(most)} ({most} bytes), or {way_out}"
        if most < least:
            advice = f"{way_out}: not even the smallest budget that would do, {format_enough(least)}, can be had"
        _log.warning(
            "the budget of %s has still to take %s, and %s: the kernel may end this process before it is used up; %s",
            format_size(budget),
            format_enough(outstanding),
            finding.format(format_room(left)),
            advice,
        )

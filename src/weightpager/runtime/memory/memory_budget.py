"""The byte budget: says no before the machine does, and keeps block tables expanded as far as there is room."""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Protocol

from weightpager.config import format_enough, format_room, format_size
from weightpager.errors import BudgetError
from weightpager.machine.memory import Memory, read_memory
from weightpager.machine.packages import needing_torch
from weightpager.runtime.bracket import bracket
from weightpager.runtime.budget import MemoryNeeds, Split, enough, refusal, too_small
from weightpager.runtime.memory.feature_cache import FeatureCache
from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.memory.page_arena import ArenaSource, PageArena
from weightpager.runtime.memory.prefix_cache import PrefixCache


class Expandable(Protocol):
    """Block tables in memory that can be given back.

    Attributes:
        nbytes: bytes of memory that they take while they are expanded.
    """

    nbytes: int

    def expand(self) -> None:
        """Take memory and write the tables. Doesn't fail."""

    def give_back(self) -> None:
        """Give the memory back. Nobody reads it."""


class Tables(Protocol):
    """A task's block tables.

    Attributes:
        parts: what is expanded for it. Tasks with the same blocks have one in common.
    """

    @property
    def parts(self) -> tuple[Expandable, ...]: ...


class TableCache:
    """An LRU cache of expanded block tables. Those of tasks in use stay; of others the least recently used go first.

    Safe to use from several threads. Expanding takes a fraction of a millisecond and needs no storage: it is done under
    the lock.

    Attributes:
        size: bytes that they may take.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._users: Counter[Expandable] = Counter()
        self._here: OrderedDict[Expandable, None] = OrderedDict()  # the least recently used first

    @property
    def taken(self) -> int:
        with self._lock:
            return self._taken()

    def hold(self, tables: Tables) -> bool:
        """Expand a task's tables and keep them until `release`. Returns False if those in use leave no room."""
        with self._lock:
            self._users.update(tables.parts)  # first: what is here stays while room is made for the rest
            missing = self._missing(tables)
            self._shrink(self.size - missing)
            if missing and self._taken() + missing > self.size:
                self._users.subtract(tables.parts)
                return False
            self._expand(tables)
            return True

    def release(self, tables: Tables) -> None:
        """Undo one `hold`. The tables stay until their room is wanted."""
        with self._lock:
            self._users.subtract(tables.parts)
            self._shrink(self.size)

    @bracket
    def borrowed(self, tables: Tables) -> Iterator[None]:
        """Expand a task's tables for a moment, whether there is room or not."""
        with self._lock:
            self._users.update(tables.parts)
            self._shrink(self.size - self._missing(tables))
            self._expand(tables)
        try:
            yield
        finally:
            self.release(tables)

    def needed(self, tables: Tables, released: Tables | None = None) -> int:
        """Bytes that these and those in use take together, as if ``released`` had been released once."""
        with self._lock:
            gone = {part for part in (() if released is None else released.parts) if self._users[part] == 1}
            return _nbytes({*self._in_use()} - gone | {*tables.parts})

    def has_one_user(self, tables: Tables) -> bool:
        """Whether some of them would go with one `release`."""
        with self._lock:
            return any(self._users[part] == 1 for part in tables.parts)

    @property
    def in_use(self) -> int:
        with self._lock:
            return _nbytes(self._in_use())

    def resize(self, size: int) -> None:
        """Have another size, which those in use fit into."""
        with self._lock:
            self.size = size
            self._shrink(size)

    def forget(self, tables: Tables) -> None:
        """Give back tables of a task that has left; another task in use may have some of them."""
        with self._lock:
            for part in tables.parts:
                if self._users[part]:
                    continue
                del self._users[part]
                if part in self._here:
                    del self._here[part]
                    part.give_back()

    def _missing(self, tables: Tables) -> int:
        return _nbytes(part for part in tables.parts if part not in self._here)

    def _expand(self, tables: Tables) -> None:
        for part in tables.parts:
            if part not in self._here:
                part.expand()
                self._here[part] = None
            self._here.move_to_end(part)

    def _in_use(self) -> list[Expandable]:
        return [part for part in self._here if self._users[part]]

    def _taken(self) -> int:
        return _nbytes(self._here)

    def _shrink(self, size: int) -> None:
        """Give back what nobody uses, until no more than this is taken or nothing is left to give."""
        taken = self._taken()
        for part in list(self._here):
            if taken <= size:
                return
            if not self._users[part]:
                del self._here[part]
                part.give_back()
                taken -= part.nbytes


def _nbytes(parts: Iterable[Expandable]) -> int:
    return sum(part.nbytes for part in parts)


@dataclass(frozen=True)
class MemoryUse:
    """Bytes by purpose; ``total`` is what a budget is compared with.

    Attributes:
        arena: slots of pages.
        resident: parameters that all tasks share.
        private: parameters of single tasks.
        tables: block tables of all tasks, and those that are expanded.
        kv_reserve: what is left to KV caches.
        staging: buffers on the way to a device.
        rows: embedding rows that are kept in memory.
        features: features of pictures that are kept for further questions about them; None where no task reads any.
        prefixes: keys and values of prompts' beginnings, where they have room; else None.
    """

    arena: int
    resident: int
    private: int
    tables: int
    kv_reserve: int = 0
    staging: int = 0
    rows: int = 0
    features: int | None = None
    prefixes: int | None = None

    @property
    def total(self) -> int:
        """The sum of all purposes."""
        return sum(self.by_purpose().values())

    def by_purpose(self) -> dict[str, int]:
        """The purposes that there are."""
        return {purpose: size for purpose, size in asdict(self).items() if size is not None}


class MemoryBudget:
    """A budget, the arena that it pays for, and how it is split at present; `MemoryNeeds` has the arithmetic.

    An elastic arena reserves address space for all pages at once, so that a budget can change while the arena stays
    where it is; where so much is refused, for the budget's slots only. Others take memory for those, and keep it.

    Attributes:
        needs: what the bundle and the engine ask for.
        arena: where pages are; it has address space for as many as it was granted.
        tables: expanded block tables, in what the split gives them.
        features: pictures' features, in what the split gives them.
    """

    def __init__(
        self,
        budget: int | None,
        needs: MemoryNeeds,
        *,
        kv_reserve: int = 0,
        prefix_cache: int = 0,
        capacity: int | None = None,
        staging: ArenaSource | None = None,
    ) -> None:
        """Reserve the arena.

        Args:
            budget: bytes; None for what all pages and embedding rows need.
            needs: what the bundle asks for.
            kv_reserve: bytes of the budget that are left to the caller's KV caches.
            prefix_cache: bytes of the budget for keys and values of prompts' beginnings.
            capacity: slots to reserve address space for, in case that the bundle grows; its pages if None.
            staging: how pages reach the device; None if the arena is in the host's memory.

        Raises:
            BudgetError: not even the smallest task fits, or the machine refuses that much address space; says the
                smallest budget that would do.
        """
        staging_bytes = None if staging is None else staging.bytes(needs.page_bytes)
        self.needs = replace(needs, kv_reserve=kv_reserve, prefix_cache=prefix_cache, staging=staging_bytes)
        self._whole = budget is None
        self._tables_in_use = 0  # bytes that the split has room for, whatever slots must go for them
        self.budget = budget if budget is not None else self.needs.holding_all().total
        wanted = needs.pages if capacity is None else capacity
        self.split = self._checked(self.needs.split(self.budget, capacity=wanted), self.budget, 0)
        self.arena = self._reserve(wanted, staging)
        self.tables = TableCache(self.split.tables)
        self.features = FeatureCache(self.split.features)
        self.prefixes = PrefixCache(prefix_cache)

    @property
    def use(self) -> MemoryUse:
        needs, always = self.needs, self.needs.footprint
        return MemoryUse(
            arena=self._taken(self.split.slots) * needs.page_bytes,
            resident=always.resident,
            private=always.private,
            tables=always.placement + max(self.tables.size, self.tables.taken),
            kv_reserve=needs.kv_reserve,
            staging=needs.staging or 0,
            rows=self.split.rows,
            features=self.split.features or None,
            prefixes=needs.prefix_cache or None,
        )

    @property
    def host_bytes(self) -> int:
        """Bytes of `use` that lie in the host's memory."""
        if self.needs.staging is None:
            return self.use.total
        return self.needs.staging + self.split.features + self.needs.prefix_cache

    def split_for(self, budget: int, tables: int = 0) -> Split:
        """How a budget is split.

        Raises:
            BudgetError: not even the smallest task fits, or the arena has taken more and can't give it back.
        """
        capacity, taken = self.arena.capacity, self._taken(0)
        if not self.arena.elastic and budget < self.needs.holding(capacity, tables=tables).total:
            refused = "the memory of this device's arena can't be given back in part: open an engine with that budget. "
            raise refusal(refused, self.needs, "the arena", capacity, tables=tables)
        return self._checked(self.needs.split(budget, tables=tables, capacity=capacity, taken=taken), budget, tables)

    def slots_beside(self, tables: int) -> int:
        """Pages that the budget has room for beside so many bytes of expanded block tables."""
        return self.needs.split(self.budget, tables=tables, capacity=self.arena.capacity).slots

    def refit(self, needs: MemoryNeeds) -> int:
        """Note what a changed bundle needs. Returns the budget to `resize` to: the same, or enough for all pages."""
        old = self.needs
        self.needs = replace(needs, kv_reserve=old.kv_reserve, prefix_cache=old.prefix_cache, staging=old.staging)
        return self._enough(self._tables_in_use) if self._whole else self.budget

    def resize(
        self, budget: int, tables: int = 0, *, retired: Iterable[int] = (), restored: Iterable[int] = ()
    ) -> None:
        """Change the budget, and with it the slots that may be used. Arguments and errors are those of `split_for`."""
        self.split = self.split_for(budget, tables)
        self.budget, self._tables_in_use = budget, tables
        self._whole = self._whole and budget == self._enough(tables)
        self.arena.release(retired)
        self.features.resize(self.split.features)  # which give way before pages come
        self.arena.commit(restored)
        self.tables.resize(self.split.tables)

    def forget(self) -> None:
        """Drop all that was kept of pictures and prompts."""
        self.features.clear()
        self.prefixes.clear()

    @property
    def has_spare_table_room(self) -> bool:
        """Whether slots have made room for expanded block tables that the tasks in use no longer need."""
        return self.tables.in_use < self._tables_in_use > self.needs.least_tables

    def smallest_budget(self, pages: int) -> int:
        """Bytes that hold so many pages at once, beside what the tasks in use take."""
        return self.needs.holding(pages, tables=self._tables_in_use).total

    def enough(self, pages: int) -> str:
        """The budget that holds so many pages at once, beside what the tasks in use take, in words."""
        return enough(self.needs, pages, tables=self._tables_in_use)

    def too_small(self, what: str, pages: int, tables: int = 0) -> BudgetError:
        """The error for something that needs so many pages at once, and bytes of expanded block tables."""
        return too_small(self.needs, what, pages, self.budget, tables=max(tables, self._tables_in_use))

    def _enough(self, tables: int) -> int:
        """The budget that nobody has a use for more than."""
        return self.needs.holding_all(self._taken(self.needs.pages), tables=tables).total

    def _checked(self, split: Split, budget: int, tables: int) -> Split:
        if split.slots < self.needs.least_pages:
            raise too_small(self.needs, "the smallest task", self.needs.least_pages, budget, tables=tables)
        return split

    def _taken(self, slots: int) -> int:
        """How many slots take memory while so many are used."""
        return slots if self.arena.elastic else self.arena.capacity

    def _reserve(self, capacity: int, staging: ArenaSource | None) -> PageArena:
        slots, page_bytes = self.split.slots, self.needs.page_bytes
        try:
            if staging is None:
                return Arena(capacity, slots, page_bytes)
            return staging.arena(capacity, slots, page_bytes)
        except OSError as error:
            refused = f"this machine refuses an arena of {format_enough(slots * page_bytes)}: state a smaller budget. "
            raise refusal(refused, self.needs, "the smallest task", self.needs.least_pages) from error


_log = logging.getLogger(__name__)


class MemoryWatch:
    """Compares what a budget has still to take with what the machine, and this process's control group, have left.

    It only warns: how much there is may change at any time, and page cache and swap may give more. Each cause is said
    once, and again only if it has been absent between. What the kernel doesn't tell isn't warned of.
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


def staging(device: str, page_bytes: int, reads: int) -> ArenaSource | None:
    """How pages get into the arena of a device; None if it is host memory, and pages are read straight into it.

    A GPU that shares the host's memory (``is_integrated``) is treated as one with memory of its own: an arena that both
    address would need no copy, and isn't done yet.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        page_bytes: bytes of a page.
        reads: how many may be in flight.

    Raises:
        ConfigError: there is no such device, or torch isn't installed.
    """
    if device == "cpu":
        return None
    with needing_torch(f"for the device {device!r}, or use the device 'cpu'"):
        from weightpager.runtime.memory.cuda_device import cuda_staging
    return cuda_staging(device, page_bytes, reads)

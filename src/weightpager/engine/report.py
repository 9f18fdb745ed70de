"""What an engine tells about itself."""

from __future__ import annotations

from dataclasses import dataclass

from weightpager.runtime.memory.budget import MemoryUse
from weightpager.runtime.planning.prefetch_counts import PrefetchCounts


@dataclass(frozen=True)
class SwitchReport:
    """One switch.

    ``seconds`` is from planning to all pages checked and in place, without the building of a module at first use;
    ``load_seconds`` is the part spent reading. ``pages`` and ``bytes`` were read by ``reads`` reads. Where the switch
    didn't wait for its pages (``waited`` is false), ``seconds`` is until it returned, and ``load_seconds`` is zero.
    """

    from_task: str | None
    to_task: str
    pages: int
    bytes: int
    reads: int
    load_seconds: float
    seconds: float
    waited: bool = True


@dataclass(frozen=True)
class PrefetchReport:
    """What prefetching does.

    Attributes:
        pays: whether it goes on; it rests while it would cost more than it saves.
        pages: what it has brought.
        hit_rate: share of the switches whose task was the likeliest by the forecast.
        log_loss: bits per switch that forecasts have missed by, the less the better.
    """

    pays: bool
    pages: PrefetchCounts
    hit_rate: float
    log_loss: float


@dataclass(frozen=True)
class EngineReport:
    """The state of an engine.

    Attributes:
        budget: bytes that may be used; `memory` says for what.
        memory: bytes by purpose.
        available_memory: bytes that this process could take beside what it has, by the machine and by the limits of its
            control group; None if unknown.
        slots: pages that fit into the arena.
        resident_pages: pages in it.
        locked_pages: pages of tasks in use.
        active: tasks in use.
        direct_io: whether reads bypass the page cache.
        kernel: instruction set of the kernels.
        bytes_read: all that was read from storage.
        working_set_pages: that the tasks of the latest visits and those in use need together; more than ``slots`` means
            that switches load again what others have just evicted.
        reloaded_pages: loaded though they had been in the arena before.
        switches: the latest ones, oldest first.
        prefetch: None if nothing is prefetched.
    """

    budget: int
    memory: MemoryUse
    available_memory: int | None
    slots: int
    resident_pages: int
    locked_pages: int
    active: tuple[str, ...]
    direct_io: bool
    kernel: str
    bytes_read: int
    working_set_pages: int
    reloaded_pages: int
    switches: tuple[SwitchReport, ...]
    prefetch: PrefetchReport | None = None

"""The arena: what it takes from the machine, and when."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locked_memory import lock
from weightpager.runtime.memory import host_arena
from weightpager.runtime.memory.host_arena import HUGE, Arena

KIB, MIB = 1 << 10, 1 << 20

needs_huge_pages = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file()
    or "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text(),
    reason="this machine has no transparent huge pages",
)


def resident(arena: Arena) -> int:
    """Bytes of memory behind an arena's addresses; by address, since the kernel joins neighbours in its reports."""
    first, end = arena.pages.ctypes.data // mmap.PAGESIZE, -(-arena.pages.nbytes // mmap.PAGESIZE)
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(8 * first)
        entries = np.frombuffer(file.read(8 * end), np.uint64)
    return int((entries >> np.uint64(63)).sum()) * mmap.PAGESIZE


def huge(arena: Arena) -> int:
    """Bytes in huge pages. Ranges of two arenas are never joined: each has some bytes around that aren't advised."""
    first, found, inside = arena.pages.ctypes.data, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *values = line.split()
        if not name.endswith(":"):
            begin, end = (int(address, 16) for address in name.split("-"))
            inside = begin < first + arena.pages.nbytes and end > first
        elif inside and name == "AnonHugePages:":
            found += int(values[0]) * KIB
    return found


def fill(arena: Arena, *slots: int) -> None:
    for slot in slots:
        arena.content(slot)[:] = bytes([slot % 251 + 1]) * arena.page_bytes


def test_slots_are_rows_of_one_aligned_array() -> None:
    arena = Arena(5, 5, 4 * KIB)
    fill(arena, *range(5))
    assert arena.pages.shape == (5, 4 * KIB)
    assert arena.pages.ctypes.data % HUGE == 0
    assert [np.unique(arena.pages[slot]).tolist() for slot in range(5)] == [[1], [2], [3], [4], [5]]


def test_an_untouched_arena_costs_nothing() -> None:
    assert resident(Arena(1 << 14, 1 << 14, 64 * KIB)) == 0


def test_address_space_that_is_refused_is_reserved_for_the_committed_slots_only() -> None:
    arena = Arena(1 << 40, 3, 64 * KIB)
    assert arena.capacity == 3
    with pytest.raises(OSError, match="memory"):
        Arena(1 << 40, 1 << 40, 64 * KIB)


@needs_huge_pages
def test_huge_pages_hold_committed_slots_only() -> None:
    arena = Arena(128, 48, 64 * KIB)  # 3 MiB of 8: one whole range
    fill(arena, 0, 47)
    assert (resident(arena), huge(arena)) == (HUGE + 64 * KIB, HUGE)
    arena.commit(range(48, 64))
    fill(arena, 48)
    assert resident(arena) <= 64 * 64 * KIB
    small = Arena(128, 48, 64 * KIB, huge_pages=False)
    fill(small, 0, 47)
    assert (resident(small), huge(small)) == (128 * KIB, 0)


@needs_huge_pages
def test_a_released_slot_gives_its_memory_back_out_of_a_huge_page() -> None:
    arena = Arena(64, 64, 64 * KIB)
    fill(arena, *range(64))
    assert resident(arena) == 4 * MIB
    arena.release([5, 6, 40])
    assert resident(arena) == 4 * MIB - 3 * 64 * KIB
    assert not any(arena.content(5))
    assert np.unique(arena.pages[7]).tolist() == [8]


@settings(max_examples=30)
@given(
    st.sampled_from([4 * KIB, 12 * KIB, 192 * KIB, MIB, 3 * MIB]),
    st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 15), max_size=12)), max_size=6),
)
def test_never_more_than_the_committed_slots(page_bytes: int, steps: list[tuple[bool, set[int]]]) -> None:
    arena = Arena(16, 8, page_bytes)
    committed = set(range(8))
    fill(arena, *committed)
    for commit, slots in steps:
        if commit:
            arena.commit(slots)
            committed |= slots
            fill(arena, *slots)
        else:
            arena.release(slots)
            committed -= slots
        assert resident(arena) <= len(committed) * page_bytes
        for slot in committed:
            assert arena.content(slot)[-1] == slot + 1
    wanted = [all(slot in committed for slot in _touching(start, page_bytes)) for start in _ranges(arena)]
    assert arena._huge.tolist() == wanted


def _ranges(arena: Arena) -> list[int]:
    return np.arange(0, arena.pages.nbytes - HUGE + 1, HUGE).tolist()


def _touching(start: int, page_bytes: int) -> range:
    return range(start // page_bytes, (start + HUGE - 1) // page_bytes + 1)


def test_a_slot_smaller_than_the_machines_page_stays_when_its_neighbour_goes() -> None:
    arena = Arena(16, 16, mmap.PAGESIZE // 4)
    fill(arena, *range(16))
    arena.release([1])
    assert arena.content(0)[-1] == 1


class Recorded(mmap.mmap):
    """Memory that notes which bytes of it were given back."""

    def madvise(self, advice: int, start: int = 0, length: int | None = None) -> None:
        assert length is not None
        if advice == mmap.MADV_DONTNEED:
            returned.update(range(start // (4 * KIB), (start + length) // (4 * KIB)))
        super().madvise(advice, start, length)


returned: set[int] = set()
"""Numbers of pages of 4 KiB that were given back, in the whole mapping."""


@settings(max_examples=60)
@given(
    machine=st.sampled_from([4 * KIB, 16 * KIB, 64 * KIB]),
    page_bytes=st.sampled_from([KIB, 4 * KIB, 24 * KIB, 32 * KIB, 192 * KIB]),
    steps=st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 39), max_size=30)), min_size=1, max_size=6),
)
def test_the_machines_pages_without_a_committed_slot_are_given_back_and_no_others(
    machine: int, page_bytes: int, steps: list[tuple[bool, set[int]]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmap, "PAGESIZE", machine)
        patch.setattr(host_arena, "address_space", lambda count: Recorded(-1, count, mmap.MAP_PRIVATE))
        arena = Arena(40, 20, page_bytes)
        committed = set(range(20))
        fill(arena, *committed)
        for commit, slots in steps:
            returned.clear()
            if commit:
                arena.commit(slots)
                committed |= slots
                fill(arena, *slots)
                continue
            arena.release(slots)
            committed -= slots
            gone = _machine_pages(slots, page_bytes, machine) - _machine_pages(committed, page_bytes, machine)
            assert {(page * 4 * KIB - arena._start) // machine for page in returned} == gone
            assert len(returned) * 4 * KIB == len(gone) * machine
            for page in gone:
                assert not arena.pages.reshape(-1)[page * machine :][:machine].any()
            for slot in committed:
                assert (arena.pages[slot] == slot + 1).all()


def _machine_pages(slots: set[int], page_bytes: int, machine: int) -> set[int]:
    """The machine's pages in which slots lie, counted from the arena's beginning."""
    return {
        page
        for slot in slots
        for page in range(slot * page_bytes // machine, ((slot + 1) * page_bytes - 1) // machine + 1)
    }


@pytest.mark.parametrize(
    ("machine", "page_bytes", "together"),
    [(4, 4, 1), (4, 12, 1), (16, 4, 4), (64, 4, 16), (64, 32, 2), (16, 24, 2), (64, 24, 8), (64, 192, 1)],
)
def test_how_many_slots_have_the_machines_pages_to_themselves(
    monkeypatch: pytest.MonkeyPatch, machine: int, page_bytes: int, together: int
) -> None:
    monkeypatch.setattr(mmap, "PAGESIZE", machine * KIB)
    assert Arena(8, 8, page_bytes * KIB).together == together


def test_slots_in_locked_memory_are_released_all_the_same() -> None:
    arena = Arena(8, 8, 4 * KIB)
    arena.pages[:] = 7
    lock(arena.pages)
    arena.release([2, 3, 4])
    arena.commit([3])
    arena.content(3)[:] = bytes(4 * KIB)
    assert [int(page[0]) for page in arena.pages[[1, 3, 5]]] == [7, 0, 7]

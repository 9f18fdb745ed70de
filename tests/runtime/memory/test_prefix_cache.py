"""What is kept of texts' beginnings: within its room, and no piece without those before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.runtime.memory.prefix_cache import Found, PrefixCache

MOST, ROOT = 4, b"root"


def chain(path: tuple[int, ...]) -> list[bytes]:
    """A root and the keys of a piece and those before it: each names the whole path to it."""
    return [ROOT, *(bytes(path[: end + 1]) for end in range(len(path)))]


def find(cache: PrefixCache, path: tuple[int, ...]) -> Found | None:
    """The piece whose name is a path; it matches nothing else."""
    return cache.find(chain(path[:-1]), lambda piece: 64 * (piece == path))


def keep(cache: PrefixCache, path: tuple[int, ...], size: int, covered: tuple[int, ...] = ()) -> None:
    cache.keep(chain(path[:-1]), chain(path)[-1], path, size, fresh=64, covers=lambda piece: piece == covered)


paths = st.lists(st.integers(0, 2), min_size=1, max_size=MOST).map(tuple)
sizes = st.integers(1, 5)
uses = st.tuples(st.just("use"), paths, sizes)
resizes = st.tuples(st.just("resize"), st.just((0,)), st.integers(0, 20))
covers = st.tuples(st.just("cover"), paths, sizes)


@given(st.integers(0, 20), st.lists(uses | resizes | covers, max_size=40))
def test_pieces_stay_within_their_room_and_behind_each_other(
    room: int, steps: list[tuple[str, tuple[int, ...], int]]
) -> None:
    cache, kept = PrefixCache(room), dict[bytes, int]()
    for what, path, size in steps:
        if what == "resize":
            cache.resize(size)
            continue
        for end in range(1, len(path) + 1):  # as a text is read: what is kept is taken over, the rest is read
            part = path[:end]
            found = find(cache, part)
            if found is not None:
                assert (found.key, found.piece, found.tokens) == (chain(part)[-1], part, 64)
                continue
            before = cache.report.bytes
            keep(cache, part, size, (*part[:-1], (part[-1] + 1) % 3) if what == "cover" else ())
            if cache.report.bytes != before or chain(part)[-1] in cache._here:
                kept[chain(part)[-1]] = size
        here = set(cache._here)
        assert all(key[:end] in here for key in here for end in range(1, len(key)))
        assert {key for keys in cache._behind.values() for key in keys} == here
        assert cache.report.bytes == sum(cache._here[key].size for key in here) <= cache.room
    assert cache.report.kept == len(cache._here)


def test_what_stands_at_the_beginning_of_most_texts_goes_last() -> None:
    cache = PrefixCache(3)
    for path in ((0,), (0, 1), (0, 2), (0, 3)):
        keep(cache, path, 1)
    assert find(cache, (0, 1)) is None
    assert all(find(cache, path) is not None for path in ((0,), (0, 2), (0, 3)))
    assert (cache.report.hits, cache.report.misses, cache.report.evicted) == (192, 256, 1)


def test_the_piece_that_has_most_in_common_is_found() -> None:
    cache = PrefixCache(9)
    for number in range(3):
        keep(cache, (number,), 1)
    found = cache.find([ROOT], lambda piece: int(10 * piece[0]))
    assert found == Found(bytes([2]), (2,), 20)
    assert cache.report.hits == 20
    assert cache.find([ROOT], lambda _: 0) is None


def test_what_a_new_piece_covers_goes_unless_others_stand_behind_it() -> None:
    cache = PrefixCache(9)
    for path in ((0,), (1,), (1, 0)):
        keep(cache, path, 1)
    keep(cache, (2,), 1, covered=(0,))
    keep(cache, (3,), 1, covered=(1,))
    assert [find(cache, (number,)) is not None for number in range(4)] == [False, True, True, True]
    assert (cache.report.kept, cache.report.bytes, cache.report.evicted) == (4, 4, 0)


def test_a_beginning_that_has_no_room_leaves_others_alone() -> None:
    cache = PrefixCache(3)
    keep(cache, (0,), 1)
    for path in ((1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)):
        keep(cache, path, 1)
    assert find(cache, (1, 1, 1)) is not None
    assert find(cache, (1, 1, 1, 1)) is None
    keep(cache, (2,), 4)
    assert find(cache, (2,)) is None
    assert cache.report.kept == 3


def test_what_was_being_read_at_a_clear_is_never_found() -> None:
    cache = PrefixCache(3)
    before = cache.root(b"task")
    for _ in range(2):
        cache.keep([before], b"key", "piece", 1, fresh=64, covers=lambda _: False)
        cache.clear()
    cache.keep([before], b"key", "piece", 1, fresh=64, covers=lambda _: False)
    assert cache.root(b"task") != before
    assert cache.root(b"task") != cache.root(b"other")
    assert cache.find([cache.root(b"task")], lambda _: 64) is None


@pytest.mark.parametrize("room", [0, 1])
def test_without_room_nothing_is_kept(room: int) -> None:
    cache = PrefixCache(room)
    keep(cache, (0,), 2)
    assert cache.report.kept == cache.report.bytes == 0

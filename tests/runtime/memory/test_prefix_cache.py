"""What is kept of prompts' beginnings: within its room, and no piece without those before it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.runtime.memory.prefix_cache import PrefixCache

MOST = 4


def chain(path: tuple[int, ...]) -> list[bytes]:
    """Keys of a piece and those before it: each names the whole path to it."""
    return [bytes(path[: end + 1]) for end in range(len(path))]


paths = st.lists(st.integers(0, 2), min_size=1, max_size=MOST).map(tuple)
sizes = st.integers(1, 5)
uses = st.tuples(st.just("use"), paths, sizes)
resizes = st.tuples(st.just("resize"), st.just((0,)), st.integers(0, 20))


@given(st.integers(0, 20), st.lists(uses | resizes, max_size=40))
def test_pieces_stay_within_their_room_and_behind_each_other(
    room: int, steps: list[tuple[str, tuple[int, ...], int]]
) -> None:
    cache, kept = PrefixCache(room), dict[bytes, tuple[bytes, int]]()
    for what, path, size in steps:
        if what == "resize":
            cache.resize(size)
            continue
        keys = chain(path)
        for end in range(1, len(keys) + 1):  # as a prompt is read: what is kept is taken over, the rest is read
            found = cache.find(keys[:end])
            if found is not None:
                assert found == kept[keys[end - 1]]
                continue
            piece = (keys[end - 1], size)
            kept[keys[end - 1]] = piece
            cache.keep(keys[:end], piece, 64, size)
        here = set(cache._here)
        assert all(key[:end] in here for key in here for end in range(1, len(key)))
        assert cache.report.bytes == sum(kept[key][1] for key in here) <= cache.room
    assert cache.report.kept == len(cache._here)


def test_what_stands_at_the_beginning_of_most_prompts_goes_last() -> None:
    cache = PrefixCache(3)
    for path in ((0,), (0, 1), (0, 2), (0, 3)):
        cache.keep(chain(path), path, 64, 1)
    assert cache.find(chain((0, 1))) is None
    assert [cache.find(chain(path)) for path in ((0,), (0, 2), (0, 3))] == [(0,), (0, 2), (0, 3)]
    assert (cache.report.hits, cache.report.misses, cache.report.evicted) == (192, 256, 1)


def test_a_beginning_that_has_no_room_leaves_others_alone() -> None:
    cache = PrefixCache(3)
    cache.keep(chain((0,)), "other", 64, 1)
    for path in ((1,), (1, 1), (1, 1, 1), (1, 1, 1, 1)):
        cache.keep(chain(path), path, 64, 1)
    assert cache.find(chain((1, 1, 1))) == (1, 1, 1)
    assert cache.find(chain((1, 1, 1, 1))) is None
    cache.keep(chain((2,)), "large", 64, 4)
    assert cache.find(chain((2,))) is None
    assert cache.report.kept == 3


def test_what_was_being_read_at_a_clear_is_never_found() -> None:
    cache = PrefixCache(3)
    before = cache.root(b"task")
    cache.keep([before], "piece", 64, 1)
    cache.clear()
    cache.keep([before], "piece", 64, 1)
    assert cache.root(b"task") != before
    assert cache.root(b"task") != cache.root(b"other")
    assert cache.find([cache.root(b"task")]) is None


@pytest.mark.parametrize("room", [0, 1])
def test_without_room_nothing_is_kept(room: int) -> None:
    cache = PrefixCache(room)
    cache.keep(chain((0,)), "piece", 64, 2)
    assert cache.report.kept == cache.report.bytes == 0

"""Features of pictures are kept in so many bytes, and come out as they were computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.runtime.memory.feature_cache import FeatureCache, FeatureReport, Features

SIZE = 6 * 4


def features(key: int) -> Features:
    return np.random.default_rng(key).random((2, 3), np.float32)


def computing(key: int, done: list[int]) -> Callable[[], Features]:
    def compute() -> Features:
        done.append(key)
        return features(key)

    return compute


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 4 * SIZE))
def test_it_gives_what_computing_anew_gives_within_its_room(asked: list[int], room: int) -> None:
    cache, done, order = FeatureCache(room), list[int](), list[int]()
    for key in asked:
        found = cache.get(key, computing(key, done))
        assert found.tobytes() == features(key).tobytes()
        order = [*(other for other in order if other != key), key][-(room // SIZE) :] if room >= SIZE else []
        report = cache.report
        assert report.bytes == report.kept * SIZE <= room
    for key in order:  # those that were used last are there
        cache.get(key, pytest.fail)
    report = cache.report
    assert report.misses == len(done) == len(asked) - (report.hits - len(order))
    assert report.evicted == (report.misses - report.kept if room >= SIZE else 0)


def test_nobody_changes_what_is_kept() -> None:
    cache, mine = FeatureCache(SIZE), features(1)
    cache.get(1, lambda: mine)
    mine[:] = 0
    found = cache.get(1, pytest.fail)
    assert found.tobytes() == features(1).tobytes()
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 0


def test_less_room_drops_what_was_used_longest_ago() -> None:
    cache, done = FeatureCache(3 * SIZE), list[int]()
    for key in (1, 2, 3, 1):
        cache.get(key, computing(key, done))
    cache.resize(2 * SIZE)
    assert cache.report == FeatureReport(kept=2, bytes=2 * SIZE, hits=1, misses=3, evicted=1)
    for key in (3, 1):
        cache.get(key, pytest.fail)
    cache.resize(0)
    assert cache.report.kept == cache.report.bytes == 0


def test_several_threads_have_a_picture_computed_once() -> None:
    cache, done, begun, go_on = FeatureCache(4 * SIZE), list[int](), threading.Event(), threading.Event()

    def slow() -> Features:
        done.append(1)
        begun.set()
        assert go_on.wait(10)
        return features(1)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(cache.get, 1, slow) for _ in range(3)]
        assert begun.wait(10)
        other = pool.submit(cache.get, 2, computing(2, done))  # another picture waits for nobody
        assert other.result(10).tobytes() == features(2).tobytes()
        go_on.set()
        assert {found.result(10).tobytes() for found in asked} == {features(1).tobytes()}
    assert sorted(done) == [1, 2]
    assert not cache._turns


def test_who_waited_computes_where_the_first_one_failed() -> None:
    cache, begun, go_on = FeatureCache(SIZE), threading.Event(), threading.Event()

    def fails() -> Features:
        begun.set()
        assert go_on.wait(10)
        raise MemoryError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, 1, fails)
        assert begun.wait(10)
        second = pool.submit(cache.get, 1, lambda: features(1))
        go_on.set()
        assert isinstance(first.exception(10), MemoryError)
        assert second.result(10).tobytes() == features(1).tobytes()
    assert cache.report == FeatureReport(kept=1, bytes=SIZE, hits=0, misses=1, evicted=0)
    assert not cache._turns


def test_what_is_computed_while_everything_is_forgotten_is_not_kept() -> None:
    cache = FeatureCache(4 * SIZE)

    def computed_meanwhile() -> Features:
        cache.clear()
        return features(1)

    assert cache.get(1, computed_meanwhile).tobytes() == features(1).tobytes()
    assert cache.report.kept == 0
    cache.get(1, lambda: features(1))
    cache.clear()
    assert cache.report == FeatureReport(kept=0, bytes=0, hits=0, misses=2, evicted=0)

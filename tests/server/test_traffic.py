"""What was answered in the last minute."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weightpager.server import metrics
from weightpager.server.metrics import SECONDS, Traffic
from weightpager.server.status import TrafficStatus


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nothing_yet() -> None:
    clock = Clock()
    found = Traffic(clock)
    clock.now += 5
    assert found.recent() == TrafficStatus(seconds=5, requests=0, median_seconds=None, p95_seconds=None, errors={})


def test_a_minute_is_looked_back() -> None:
    clock = Clock()
    found = Traffic(clock)
    found.add(200, 9.0)
    found.add(503, 0.001)
    clock.now += SECONDS + 1
    for status, seconds in ((200, 0.1), (200, 0.3), (200, 0.2), (429, 0.001), (504, 30.0), (429, 0.001)):
        found.add(status, seconds)
    errors = {429: 2, 504: 1}
    assert found.recent() == TrafficStatus(
        seconds=SECONDS, requests=6, median_seconds=0.2, p95_seconds=0.3, errors=errors
    )


def test_with_very_many_requests_less_is_looked_back() -> None:
    clock = Clock()
    found = Traffic(clock)
    for _ in range(metrics._MOST + 100):
        clock.now += 0.001
        found.add(200, 0.1)
    recent = found.recent()
    assert recent.requests == metrics._MOST
    assert abs(recent.requests / recent.seconds - 1000) < 1


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_ranks_are_times_that_were_measured(times: list[float]) -> None:
    found = Traffic()
    for seconds in times:
        found.add(200, seconds)
    recent = found.recent()
    assert recent.median_seconds in times
    assert recent.p95_seconds is not None
    assert sum(seconds <= recent.p95_seconds for seconds in times) >= 0.95 * len(times)

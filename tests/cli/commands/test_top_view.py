"""What ``top`` shows in terminals of any size."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from weightpager.cli.commands.top import view
from weightpager.runtime.memory.feature_cache import FeatureReport
from weightpager.runtime.memory.prefix_cache import PrefixReport
from weightpager.runtime.row_report import RowReport
from weightpager.server.status import ForecastStatus, Status, SwitchStatus, TaskStatus
from weightpager.server.status import TrafficStatus as Traffic

ERRORS = Traffic(seconds=60.0, requests=120, median_seconds=0.0123, p95_seconds=0.5, errors={429: 3, 504: 1})


def state(tasks: int = 8, layers: int = 6, **changes: object) -> Status:
    """A busy server; nothing of it is true."""
    names = [f"task-with-a-long-name-{number}" for number in range(tasks)]
    rows = [
        TaskStatus(name=n, kind="k", resident=0.5, waiting=i % 3, requests=i, layers=[(1, 2)] * layers)
        for i, n in enumerate(names)
    ]
    switches = [
        SwitchStatus(time=90.0 + i, from_task=names[0], to_task=names[-1], bytes=2**20, seconds=0.01) for i in range(9)
    ]
    forecast = ForecastStatus(
        next=[1 / tasks] * tasks, seconds=1.0, after=[], switches=9, foreseen=0.5, log_loss_bits=1.0
    )
    facts: dict[str, Any] = {
        "version": "1.0", "state": "ready", "time": 100.0, "uptime": 7.0, "kernel": "avx512_bf16", "direct_io": True,
        "budget": 2**30, "memory": {"arena": 2**29, "resident": 2**20, "private": 2**14, "tables": 2**18},
        "process_bytes": 3 * 2**30, "traffic": ERRORS, "page_bytes": 4096, "slots": 100, "resident_pages": 90,
        "working_set_pages": 80, "bytes_read": 0, "current": names[0], "running": 1, "queue_limit": 256,
        "tasks": rows, "pages": None, "forecast": forecast, "switches_total": 9, "switches": switches, "followed": [],
        "prefetch": {"active": True, "loaded": 9, "hits": 9, "late": 9, "misses": 9, "wasted": 9},
    }  # fmt: skip
    return Status(**facts | changes)


def shown(found: Status, width: int = 160, height: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="standard")
    console.print(view(found, width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain(found: Status, width: int = 160, height: int | None = None) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(view(found, width, height))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


ROWS = RowReport(
    rows=464, resident=100, resident_bytes=7500, lookups=200, hits=190, faults=8, bytes_read=32768, fault_seconds=0.6
)


@pytest.mark.parametrize("size", [(70, 20), (80, 24), (60, 14), (200, 60)])
@pytest.mark.parametrize(("tasks", "layers"), [(1, 1), (8, 6), (12, 80), (64, 32)])
@pytest.mark.parametrize("rows", [None, ROWS])
def test_it_fits(size: tuple[int, int], tasks: int, layers: int, rows: RowReport | None) -> None:
    width, height = size
    lines = plain(state(tasks, layers, rows=rows), width, height)
    assert any("95.0% of 200 look-ups hit" in line for line in lines) == (rows is not None)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for words in ("last minute", "budget", "arena 90 of 100 slots", "latest of 9 switches", "next: ", "arena: memory"):
        assert words in text


def test_row_faults_are_told_in_milliseconds_a_request() -> None:
    found = state(2, rows=ROWS)
    requests = sum(task.requests for task in found.tasks)
    assert any(f"{600 / requests:.1f} ms a request" in line for line in plain(found))


def test_kept_features_have_a_line() -> None:
    seen = FeatureReport(kept=3, bytes=450_000, hits=12, misses=4, evicted=1)
    lines = plain(state(2, features=seen))
    assert "features of 3 pictures in memory, 440 KiB; 75.0% of 16 pictures were kept, 1 went" in lines
    assert len(plain(state(12, rows=ROWS, features=seen), 70, 20)) <= 20
    assert len(plain(state(12, features=seen), 60, 14)) <= 14
    fresh = FeatureReport(kept=0, bytes=0, hits=0, misses=0, evicted=0)
    assert any("none asked about yet" in line for line in plain(state(2, features=fresh)))
    assert not any("features" in line for line in plain(state(2)))


def test_kept_beginnings_have_a_line() -> None:
    seen = PrefixReport(kept=3, bytes=450_000, hits=192, misses=64, evicted=1)
    lines = plain(state(2, prefixes=seen))
    assert "beginnings of prompts 440 KiB; 75.0% of 256 tokens weren't read again, 1 pieces went" in lines
    assert len(plain(state(12, rows=ROWS, prefixes=seen), 70, 20)) <= 20
    fresh = PrefixReport(kept=0, bytes=0, hits=0, misses=0, evicted=0)
    assert any("none come again yet" in line for line in plain(state(2, prefixes=fresh)))


def test_the_current_task_stays_in_sight_and_the_rest_is_counted() -> None:
    lines = plain(state(30, current="task-with-a-long-name-29"), 70, 20)
    assert any("task-with-a-long-" in line and "29" in line for line in lines)
    assert any("… and 23 more" in line for line in lines)


def test_requests_their_times_and_errors() -> None:
    text = "\n".join(plain(state(), 70, 20))
    assert "2.0 requests/s, 3 × 429, 1 × 504, half in 12.3 ms, 95% in 500.0 ms" in " ".join(plain(state()))
    assert "budget 513 MiB of 1.0 GiB; the whole process 3.0 GiB" in text
    assert "3 × 429" in text
    idle = Traffic(seconds=9.0, requests=0, median_seconds=None, p95_seconds=None, errors={})
    assert "no requests in the last minute" in " ".join(plain(state(traffic=idle)))
    assert "requests/s" not in " ".join(plain(state(traffic=None, process_bytes=None)))


def test_a_working_set_that_does_not_fit_is_red() -> None:
    red = "\x1b[1;31m"
    assert f"{red}arena 90 of 100 slots; latest tasks need 101 pages, more than fit" in shown(
        state(working_set_pages=101)
    )
    assert "latest tasks need 100 pages\n" in "\n".join(plain(state(working_set_pages=100)))


def test_a_figure_without_words_of_its_own_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any("bytes read" in line for line in plain(state()))
    monkeypatch.setattr("weightpager.cli.commands.top._IN_WORDS", ("budget", "slots", "resident_pages"))
    lines = plain(state(), 70, 20)
    assert "working set pages 80, bytes read 0" in lines
    assert len(lines) <= 20


def test_nothing_yet() -> None:
    text = "\n".join(plain(state(forecast=None, prefetch=None, switches=[], switches_total=0, current=None), 70, 20))
    for words in ("latest of 0 switches", "nothing is prefetched", "nothing to foretell from yet"):
        assert words in text

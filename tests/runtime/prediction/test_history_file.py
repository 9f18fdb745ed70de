"""History across restarts: kill -9, damage, a full file, a clock that was set back, two engines on one file."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.errors import ConfigError
from weightpager.runtime.prediction.appended_file import AppendedFile
from weightpager.runtime.prediction.history import HistoryFile, parse_history
from weightpager.runtime.prediction.task_monitor import TaskMonitor
from weightpager.trace_file import Visit, encode, read_timed_visits, read_trace


class Run:
    """One run of a program that records its history in a file."""

    def __init__(self, path: Path, clock: float = 0.0) -> None:
        self.now = clock
        self.log = HistoryFile(path, delay=0.01)
        self.monitor = TaskMonitor(clock=lambda: self.now, file=self.log)

    def visit(self, tasks: str, seconds: float = 1.0) -> None:
        for task in tasks:
            self.monitor.record(task)
            self.now += seconds


def test_a_history_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    first = Run(path)
    first.visit("abbc")
    first.monitor.close()
    second = Run(path, clock=5.0)
    assert second.monitor.current is None
    assert second.monitor.requests == {"a": 1, "b": 2, "c": 1}
    assert second.monitor.switches == 2
    assert second.monitor.followed(["a", "b", "c"]).tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert second.monitor.record("c") is None
    second.now += 3
    second.visit("a")
    assert second.monitor.dwell_seconds() == {
        "a": [pytest.approx(1.0, abs=1e-3)],
        "b": [pytest.approx(2.0, abs=1e-3)],
        "c": [3.0],
    }
    assert [(visit.task, visit.resumed) for visit in second.monitor.visits()] == [
        ("a", True), ("b", False), ("c", False), ("c", True), ("a", False),
    ]  # fmt: skip
    second.monitor.close()
    third = Run(path)
    assert third.monitor.switches == 3
    assert [visit.task for visit in third.monitor.visits()] == list("abcca")
    third.monitor.close()


def test_times_never_decrease_when_the_clock_is_set_back() -> None:
    rows = [Visit("a", 1000.0), Visit("b", 1010.0), Visit("a", 5.0, resumed=True), Visit("b", 8.0)]
    visits = parse_history(b"".join(map(encode, rows))).visits
    assert [visit.start for visit in visits] == [1000.0, 1010.0, 1010.0, 1013.0]
    assert [visit.resumed for visit in visits] == [True, False, True, False]


def test_a_past_in_the_future_is_past(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(encode(Visit("a", time.time() + 1e6)))
    later = Run(path, clock=50.0)
    later.visit("b")
    starts = [visit.start for visit in later.monitor.visits()]
    assert starts == sorted(starts)
    assert starts[1] == 50.0
    later.monitor.close()
    assert read_trace(path) == ["a", None, "b"]  # times that decrease would be refused


def test_a_lost_line_is_a_gap() -> None:
    lines = [encode(Visit(task, float(number))) for number, task in enumerate("abcd")]
    history = parse_history(b"".join([lines[0], lines[1][:-3] + b"\n", lines[2], lines[3]]))
    assert history.lost == 1
    assert [(visit.task, visit.resumed) for visit in history.visits] == [("a", True), ("c", True), ("d", False)]


@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
    cut=st.none() | st.integers(0, 10_000),
)
def test_damage_costs_the_lines_that_it_hits(flips: list[tuple[int, int]], cut: int | None) -> None:
    visits = [Visit(f"täsk {number}\n", number / 3) for number in range(20)]
    lines = [encode(visit) for visit in visits]
    content = bytearray(b"".join(lines))
    for place, value in flips:
        content[place % len(content)] = value
    content = content[: len(content) if cut is None else cut % len(content)]
    found = iter(visit.task for visit in parse_history(bytes(content)).visits)
    whole = [visit for visit, line in zip(visits, lines, strict=True) if line in content.splitlines(keepends=True)]
    lost = 2 * len(flips)  # a line end that is gone takes two lines with it
    kept = content.count(b"\n") if cut is not None else len(visits)
    assert len(whole) >= kept - lost - 1
    assert all(visit.task in found for visit in whole)  # in their order


@given(st.lists(st.binary(max_size=60)))
def test_any_bytes_can_be_read(lines: list[bytes]) -> None:
    content = b"\n".join(lines)
    assert parse_history(content).lost <= len(content.splitlines())


@pytest.mark.parametrize(
    "row",
    ['{"run": 1, "number": 1, "task": "a", "time": 1}', '{"task": "a", "time": NaN}', '{"task": 7, "time": 1}',
     '{"requests": {"a": -1}, "switches": 0}', "[1]", "[" * 10_000, '{"task": "a", "time": 1' + "0" * 400 + "}",
     '{"requests": [], "switches": 0}'],
)  # fmt: skip
def test_nonsense_is_no_history(row: str) -> None:
    history = parse_history(row.encode())
    assert (history.visits, history.requests, history.lost) == ([], Counter(), 1)


def test_a_torn_last_line_loses_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "history"
    run = Run(path)
    run.visit("abc")
    run.monitor.close()
    with path.open("rb+") as file:
        file.truncate(path.stat().st_size - 5)
    again = Run(path)
    again.visit("ab")
    again.monitor.close()
    history = HistoryFile(path).restore()
    assert [visit.task for visit in history.visits] == list("abcab")
    assert history.lost == 1  # the counts, which stood last


def test_a_full_file_keeps_its_newer_half_and_all_counts(tmp_path: Path) -> None:
    path = tmp_path / "history"
    log = HistoryFile(path, limit=4096, delay=60)
    for number in range(1000):
        log.request("task")
        log.add("task", float(number), switch=number > 0)
        if number % 10 == 0:
            log.flush()
            assert path.stat().st_size <= 4096
    log.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["history", "history.lock"]
    again = HistoryFile(path)
    history = again.restore()
    assert again.restore().visits == []
    again.close()
    assert history.requests == {"task": 1000}
    assert history.switches == 999
    assert [visit.start for visit in history.visits] == list(range(1000 - len(history.visits), 1000))
    assert len(history.visits) > 15


def test_counts_of_many_names_are_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "history"
    log = HistoryFile(path, limit=4096, delay=60)
    for number in range(5000):
        log.request("often" if number % 2 else f"name {number}")
        log.add("often", float(number), switch=False)
    log.close()
    assert path.stat().st_size <= 4096
    assert parse_history(path.read_bytes()).requests["often"] == 2500


def test_two_logs_cannot_share_a_file(tmp_path: Path) -> None:
    log = HistoryFile(tmp_path / "history")
    with pytest.raises(ConfigError, match="nobody else has open.*give every engine"):
        HistoryFile(tmp_path / "history")
    log.close()
    log.close()
    log.flush()
    HistoryFile(tmp_path / "history").close()


def test_the_disk_has_the_last_visit_in_time_though_none_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.runtime.prediction.history.SYNC_INTERVAL", 0.3)
    times: list[float] = []
    sync = AppendedFile.sync

    def noted(file: AppendedFile) -> None:
        sync(file)
        times.append(time.monotonic())

    monkeypatch.setattr(AppendedFile, "sync", noted)
    log = HistoryFile(tmp_path / "history", delay=0.01)
    log.add("a", 1.0, switch=False)
    end = time.monotonic() + 20
    while not times:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.5)
    assert len(times) == 1  # nothing has come since
    log.close()


def test_a_file_that_has_gone_away_is_not_asked_about_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one of a network file system whose server has gone."""
    monkeypatch.setattr("weightpager.runtime.prediction.history.SYNC_INTERVAL", 0.2)
    asked: list[bool] = []
    log = HistoryFile(tmp_path / "history", delay=0.01)
    log.add("a", 1.0, switch=False)
    end = time.monotonic() + 20
    while not log._unsynced and time.monotonic() < end:
        time.sleep(0.001)

    def gone(_file: AppendedFile) -> int:
        asked.append(True)
        raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(AppendedFile, "size", property(gone))
    time.sleep(0.6)
    assert len(asked) <= 2
    log.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking with threads: the child only waits
def test_a_process_that_was_forked_meanwhile_keeps_nobody_from_the_file(tmp_path: Path) -> None:
    """Such as a worker of a pool, which outlives the engine."""
    log = HistoryFile(tmp_path / "history")
    end, begin = os.pipe()
    child = os.fork()
    if not child:
        os.close(begin)
        os.read(end, 1)
        os._exit(0)
    try:
        log.close()
        HistoryFile(tmp_path / "history").close()
    finally:
        os.close(begin)
        os.close(end)
        os.waitpid(child, 0)


def test_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file that can be written"):
        HistoryFile(tmp_path / "absent" / "history")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("directory", "fifo"):
        with pytest.raises(ConfigError, match="expected a file that can be written"):
            HistoryFile(tmp_path / name)


@pytest.mark.parametrize("content", [b'{"text": "mine", "label": "spam"}\n', b"\x7fELF\0\0", b"x" * (3 << 20)])
def test_a_file_of_something_else_is_refused_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="expected a history of tasks.*found a file of something else"):
        HistoryFile(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b'{"task": "a", "ti', b'{"req', b'{"task": "a", "time\n'])
def test_a_damaged_history_is_none_of_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history"
    path.write_bytes(content)
    run = Run(path)
    run.visit("ab")
    run.monitor.close()
    assert [visit.task for visit in HistoryFile(path).restore().visits] == ["a", "b"]


def test_a_file_that_grew_too_large_is_replaced_as_soon_as_that_is_possible(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"".join(encode(Visit("a", float(number))) for number in range(300)))
    log = HistoryFile(path, limit=4096)
    log.add("b", 1e9, switch=True)
    log.close()
    assert path.stat().st_size <= 4096
    kept = parse_history(path.read_bytes()).visits
    assert [visit.task for visit in kept[-2:]] == ["a", "b"]


def test_only_the_owner_can_read_a_history(tmp_path: Path) -> None:
    HistoryFile(tmp_path / "history").close()
    assert {entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir()} == {0o600}


def test_full_storage_costs_history_and_one_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    log = HistoryFile(tmp_path / "history", delay=60)
    full = os.open("/dev/full", os.O_WRONLY)
    working = os.dup(log._file._file)
    os.dup2(full, log._file._file)  # the kernel's own ENOSPC
    with caplog.at_level(logging.WARNING):
        for number in range(2):
            log.add("lost", float(number), switch=False)
            log.flush()
    assert len(caplog.records) == 1
    os.dup2(working, log._file._file)
    log.add("kept", 9.0, switch=False)
    log.close()
    os.close(full)
    os.close(working)
    assert [visit.task for visit in parse_history((tmp_path / "history").read_bytes()).visits] == ["kept"]
    assert read_trace(tmp_path / "history") == [None, "kept"]  # no empty line, which a trace hasn't


def test_a_disk_that_cannot_be_waited_for_is_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = HistoryFile(tmp_path / "history", delay=60)
    with monkeypatch.context() as patch:
        patch.setattr(AppendedFile, "sync", lambda _: (_ for _ in ()).throw(OSError("busy")))
        log.add("a", 1.0, switch=False)
        log.flush(sync=True)
    log.add("b", 2.0, switch=True)
    log.close()
    assert read_trace(tmp_path / "history") == [None, "a", "b"]


WRITER = """
import sys
import time
from weightpager.runtime.prediction.task_monitor import TaskMonitor
from weightpager.runtime.prediction.history import HistoryFile
monitor = TaskMonitor(file=HistoryFile(sys.argv[1], limit=20_000, delay=0.0))
print("ready", flush=True)
number = monitor.switches
while True:
    monitor.record(f"task {number % 7}")
    number += 1
    time.sleep(1e-4)
"""


@pytest.mark.slow
def test_kill_9_at_any_time_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "history"
    seen = 0
    for round_ in range(6):
        begun = time.time()
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            started = path.stat().st_ino, path.stat().st_size
            while (path.stat().st_ino, path.stat().st_size) == started:
                time.sleep(1e-3)
            with pytest.raises(ConfigError, match="another engine has it"):
                HistoryFile(path)
            time.sleep(0.037 * round_)
            process.send_signal(signal.SIGKILL)
        names = [name for name in read_trace(path) if name is not None]
        log = HistoryFile(path, limit=20_000)
        history = log.restore()
        log.close()
        assert history.lost <= round_ + 1  # of each run at most the line that it was writing
        assert history.visits[-1].start > begun
        assert history.switches >= seen
        seen = history.switches
        for before, visit in pairwise(history.visits):
            assert visit.resumed or int(visit.task[-1]) == (int(before.task[-1]) + 1) % 7
        assert [visit.task for visit in history.visits] == names
    assert path.stat().st_size < 40_000


def test_a_history_is_a_trace(tmp_path: Path) -> None:
    """It goes into `simulate` and into `transitions:` of a task file as it is."""
    path = tmp_path / "history"
    for tasks in ("aabc", "ab"):
        run = Run(path)
        run.visit(tasks)
        run.monitor.close()
    assert read_trace(path, "abc") == [None, "a", "b", "c", None, "a", "b"]
    assert [visit.task for visit in read_timed_visits(path, "abc")] == list("abcab")


def test_a_trace_without_times_is_no_history_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b'{"task": "a"}\n{"task": "b"}\n')
    with pytest.raises(ConfigError, match="expected a history of tasks"):
        HistoryFile(path)
    assert path.read_bytes() == b'{"task": "a"}\n{"task": "b"}\n'


def test_a_file_that_could_not_be_replaced_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AppendedFile(tmp_path / "history")
    file.append(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        patch.setattr(os, "fsync", full)
        file.replace(b"new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["history", "history.lock"]
    file.append(b"er")
    assert file.tail(10) == b"older"
    file.close()

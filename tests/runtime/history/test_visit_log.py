"""History across restarts: kill -9, damage, a full file, a clock that was set back, two engines on one file."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.errors import ConfigError
from weightpager.runtime.history.appended_file import AppendedFile
from weightpager.runtime.history.history_file import VisitLog
from weightpager.runtime.history.task_monitor import TaskMonitor
from weightpager.runtime.history.visit_rows import History, VisitRow, encode_visit, parse_history


class Run:
    """One run of a program that records its history in a file."""

    def __init__(self, path: Path, clock: float = 0.0) -> None:
        self.now = clock
        self.log = VisitLog(path, delay=0.01)
        self.monitor = TaskMonitor(clock=lambda: self.now, log=self.log)

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
    rows = [
        VisitRow(1, 1, "a", 1000.0),
        VisitRow(1, 2, "b", 1010.0),
        VisitRow(2, 1, "a", 5.0),
        VisitRow(2, 2, "b", 8.0),
    ]
    visits = History(rows).visits()
    assert [visit.start for visit in visits] == [1000.0, 1010.0, 1010.0, 1013.0]
    assert [visit.resumed for visit in visits] == [True, False, True, False]


def test_a_past_in_the_future_is_past(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(encode_visit(VisitRow(1, 1, "a", time.time() + 1e6)))
    later = Run(path, clock=50.0)
    later.visit("b")
    starts = [visit.start for visit in later.monitor.visits()]
    assert starts == sorted(starts)
    assert starts[1] == 50.0
    later.monitor.close()


def test_a_lost_line_is_a_gap() -> None:
    lines = [encode_visit(VisitRow(1, number, task, float(number))) for number, task in enumerate("abcd")]
    history = parse_history([lines[0], lines[1][:-3], lines[2], lines[3]])
    assert history.lost == 1
    assert [(visit.task, visit.resumed) for visit in history.visits()] == [("a", True), ("c", True), ("d", False)]


@given(
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
    cut=st.none() | st.integers(0, 10_000),
)
def test_damage_costs_the_lines_that_it_hits(flips: list[tuple[int, int]], cut: int | None) -> None:
    rows = [VisitRow(1, number, f"täsk {number}\n", number / 3) for number in range(20)]
    lines = [encode_visit(row) for row in rows]
    content = bytearray(b"".join(lines))
    for place, value in flips:
        content[place % len(content)] = value
    content = content[: len(content) if cut is None else cut % len(content)]
    found = parse_history(bytes(content).split(b"\n")).rows
    lost = 2 * len(flips)  # a line end that is gone takes two lines with it
    kept = content.count(b"\n") if cut is not None else len(rows)
    assert len(found) >= kept - lost - 1
    assert all(any(row == VisitRow(other.run, other.number, other.task, round(other.time, 6)) for other in rows)
               for row in found)  # fmt: skip


@given(st.lists(st.binary(max_size=60)))
def test_any_bytes_can_be_read(lines: list[bytes]) -> None:
    history = parse_history(lines)
    assert history.lost <= len(lines)


@pytest.mark.parametrize(
    "row",
    ['{"run": true, "number": 1, "task": "a", "time": 1}', '{"run": 1, "number": 1, "task": "a", "time": NaN}',
     '{"run": 1, "number": 1, "task": 7, "time": 1}', '{"requests": {"a": -1}, "switches": 0}', "[1]", "[" * 10_000,
     '{"run": 1, "number": 1, "task": "a", "time": 1' + "0" * 400 + "}", '{"requests": [], "switches": 0}'],
)  # fmt: skip
def test_sealed_nonsense_is_no_history(row: str) -> None:
    from zlib import crc32

    history = parse_history([b"%s\t%08x" % (row.encode(), crc32(row.encode()))])
    assert (history.rows, history.requests, history.lost) == ([], Counter(), 1)


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
    history = VisitLog(path).restore()
    assert [row.task for row in history.rows] == list("abcab")
    assert history.lost == 1  # the counts, which stood last


def test_a_full_file_keeps_its_newer_half_and_all_counts(tmp_path: Path) -> None:
    path = tmp_path / "history"
    log = VisitLog(path, limit=4096, delay=60)
    for number in range(1000):
        log.request("task")
        log.add("task", float(number), switch=number > 0)
        if number % 10 == 0:
            log.flush()
            assert path.stat().st_size <= 4096
    log.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["history", "history.lock"]
    again = VisitLog(path)
    history = again.restore()
    assert again.restore().rows == []
    again.close()
    assert history.requests == {"task": 1000}
    assert history.switches == 999
    assert [row.number for row in history.rows] == list(range(1001 - len(history.rows), 1001))
    assert len(history.rows) > 15


def test_counts_of_many_names_are_bounded_too(tmp_path: Path) -> None:
    path = tmp_path / "history"
    log = VisitLog(path, limit=4096, delay=60)
    for number in range(5000):
        log.request("often" if number % 2 else f"name {number}")
        log.add("often", float(number), switch=False)
    log.close()
    assert path.stat().st_size <= 4096
    assert parse_history(path.read_bytes().split(b"\n")).requests["often"] == 2500


def test_two_logs_cannot_share_a_file(tmp_path: Path) -> None:
    log = VisitLog(tmp_path / "history")
    with pytest.raises(ConfigError, match="nobody else has open.*give every engine"):
        VisitLog(tmp_path / "history")
    log.close()
    log.close()
    log.flush()
    VisitLog(tmp_path / "history").close()


def test_the_disk_has_the_last_visit_in_time_though_none_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.runtime.history.history_file.SYNC_INTERVAL", 0.3)
    times: list[float] = []
    sync = AppendedFile.sync

    def noted(file: AppendedFile) -> None:
        sync(file)
        times.append(time.monotonic())

    monkeypatch.setattr(AppendedFile, "sync", noted)
    log = VisitLog(tmp_path / "history", delay=0.01)
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
    monkeypatch.setattr("weightpager.runtime.history.history_file.SYNC_INTERVAL", 0.2)
    asked: list[bool] = []
    log = VisitLog(tmp_path / "history", delay=0.01)
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
    log = VisitLog(tmp_path / "history")
    end, begin = os.pipe()
    child = os.fork()
    if not child:
        os.close(begin)
        os.read(end, 1)
        os._exit(0)
    try:
        log.close()
        VisitLog(tmp_path / "history").close()
    finally:
        os.close(begin)
        os.close(end)
        os.waitpid(child, 0)


def test_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file that can be written"):
        VisitLog(tmp_path / "absent" / "history")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("directory", "fifo"):
        with pytest.raises(ConfigError, match="expected a file that can be written"):
            VisitLog(tmp_path / name)


@pytest.mark.parametrize("content", [b'{"text": "mine", "label": "spam"}\n', b"\x7fELF\0\0", b"x" * (3 << 20)])
def test_a_file_of_something_else_is_refused_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="expected a history of tasks.*found a file of something else"):
        VisitLog(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 4096, b'{"run": 1, "num', b'{"req', b'{"run": 1, "number": 1}\t00000000\n']
)
def test_a_damaged_history_is_none_of_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history"
    path.write_bytes(content)
    run = Run(path)
    run.visit("ab")
    run.monitor.close()
    assert [row.task for row in VisitLog(path).restore().rows] == ["a", "b"]


def test_a_file_that_grew_too_large_is_replaced_as_soon_as_that_is_possible(tmp_path: Path) -> None:
    path = tmp_path / "history"
    rows = [VisitRow(1, number, "a", float(number)) for number in range(300)]
    path.write_bytes(b"".join(map(encode_visit, rows)))
    log = VisitLog(path, limit=4096)
    log.add("b", 1e9, switch=True)
    log.close()
    assert path.stat().st_size <= 4096
    kept = parse_history(path.read_bytes().split(b"\n")).rows
    assert [row.task for row in kept[-2:]] == ["a", "b"]


def test_only_the_owner_can_read_a_history(tmp_path: Path) -> None:
    VisitLog(tmp_path / "history").close()
    assert {entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir()} == {0o600}


def test_full_storage_costs_history_and_one_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    log = VisitLog(tmp_path / "history", delay=60)
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
    assert [row.task for row in parse_history((tmp_path / "history").read_bytes().split(b"\n")).rows] == ["kept"]


WRITER = """
import sys
import time
from weightpager.runtime.history.task_monitor import TaskMonitor
from weightpager.runtime.history.history_file import VisitLog
monitor = TaskMonitor(log=VisitLog(sys.argv[1], limit=20_000, delay=0.0))
print("ready", flush=True)
number = monitor.switches
while True:
    monitor.record(f"task {number % 7}")
    number += 1
    time.sleep(1e-4)
"""


def test_kill_9_at_any_time_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "history"
    seen = 0
    for round_ in range(6):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            started = path.stat().st_ino, path.stat().st_size
            while (path.stat().st_ino, path.stat().st_size) == started:
                time.sleep(1e-3)
            with pytest.raises(ConfigError, match="another engine has it"):
                VisitLog(path)
            time.sleep(0.037 * round_)
            process.send_signal(signal.SIGKILL)
        log = VisitLog(path, limit=20_000)
        history = log.restore()
        log.close()
        assert history.lost <= round_ + 1  # of each run at most the line that it was writing
        assert history.rows[-1].run == round_ + 1
        assert history.switches >= seen
        seen = history.switches
        for before, row in zip(history.rows, history.rows[1:], strict=False):
            assert row.run > before.run or row.number > before.number
    assert path.stat().st_size < 40_000

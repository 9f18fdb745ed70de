"""Trace files: what a line may be, and what is said of one that is wrong."""

import json
import logging
from pathlib import Path

import pytest

from weightpager.errors import ConfigError
from weightpager.trace_file import Visit, read_timed_visits, read_trace, read_visits, write_trace
from weightpager.transitions import Transitions

TASKS = ("spam", "topic", "pos")


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_trace_is_read_in_order(tmp_path: Path) -> None:
    timed, untimed = [{"task": "spam", "time": 0}, {"task": "pos", "time": 3.5}], [{"task": "topic", "time": None}]
    rows = [*timed, *untimed, {"task": "spam"}, {"task": "spam", "time": 3.5}]
    path = write(tmp_path / "day.jsonl", *map(json.dumps, rows))
    assert read_trace(path) == read_trace(str(path), TASKS) == ["spam", "pos", "topic", "spam", "spam"]
    assert read_trace(write(tmp_path / "empty.jsonl")) == []


def test_no_switch_leads_over_a_gap(tmp_path: Path) -> None:
    """Such as a restart, which a history marks."""
    path = tmp_path / "trace.jsonl"
    rows = [("spam", False), ("topic", False), ("pos", True), ("spam", False)]
    path.write_text("".join(json.dumps({"task": task, "resumed": resumed}) + "\n" for task, resumed in rows))
    visits = read_trace(path, TASKS)
    assert visits == ["spam", "topic", None, "pos", "spam"]
    counted = Transitions.from_trace(TASKS, visits, smoothing=0).matrix
    assert counted[TASKS.index("topic"), TASKS.index("pos")] == pytest.approx(1 / (len(TASKS) - 1))
    assert counted[TASKS.index("pos"), TASKS.index("spam")] == 1.0
    path.write_text('{"task": "spam", "resumed": 1}\n')
    with pytest.raises(ConfigError, match="expected true or false for resumed"):
        read_trace(path, TASKS)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("spam", "expected a JSON object, got b'spam'"),
        ("", "expected a JSON object"),
        ("[" * 100_000, "expected a JSON object"),
        ('["spam"]', "expected a JSON object"),
        ('{"time": 3}', "expected a task's name, got None"),
        ('{"task": 7}', "expected a task's name, got 7"),
        ('{"task": "spma"}', "expected one of spam, topic, pos, got 'spma'"),
        ('{"task": "spam", "tmie": 3}', "expected the keys task and time, got 'tmie'"),
        ('{"task": "spam", "time": "3"}', "expected a time in seconds, got 3"),
        ('{"task": "spam", "time": true}', "expected a time in seconds, got True"),
        ('{"task": "spam", "time": NaN}', "expected a time in seconds, got nan"),
        ('{"task": "spam", "time": 1' + "0" * 400 + "}", "expected a time in seconds, got 1000"),
        ('{"task": "spam", "time": 1.5}', "expected a time from 2.0 up, got 1.5"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "day.jsonl", '{"task": "spam", "time": 2}', '{"task": "pos"}', line)
    with pytest.raises(ConfigError) as raised:
        read_trace(path, TASKS)
    assert str(raised.value).startswith(f"{path}:3: {expected}")


@pytest.mark.parametrize(
    "row",
    [{"task": "s" * 10_000}, {"task": ["s"] * 10_000}, {"task": "spam", "k" * 10_000: 1}],
    ids=["name", "no name", "key"],
)
def test_what_is_wrong_is_quoted_in_part(tmp_path: Path, row: dict[str, object]) -> None:
    path = write(tmp_path / "day.jsonl", json.dumps(row))
    with pytest.raises(ConfigError) as raised:
        read_trace(path, TASKS)
    assert len(str(raised.value)) < len(str(path)) + 200


def test_a_trace_that_is_not_text_or_not_there_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\x00\x80")
    with pytest.raises(ConfigError, match=r"binary\.jsonl:1: expected a JSON object"):
        read_trace(binary)
    with pytest.raises(ConfigError, match=r"absent\.jsonl: expected a readable trace file"):
        read_trace(tmp_path / "absent.jsonl")


def test_a_trace_file_tells_of_gaps(tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.jsonl", [Visit("a", 0.0), Visit("b", 1.0, resumed=True), Visit("a", 2.0)])
    assert read_trace(tmp_path / "trace.jsonl") == ["a", None, "b", "a"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    visits = [Visit("a", 0.5), Visit("b", 1.5, resumed=True), Visit("ä\n", 2.0)]
    write_trace(tmp_path / "trace.jsonl", visits)
    assert read_visits(tmp_path / "trace.jsonl") == visits


@pytest.mark.parametrize("unfinished", [b'{"task": "topic", "ti', b"{", b"\0" * 100, b'\0\0{"task": "topic"'])
def test_a_line_without_its_end_is_a_gap(tmp_path: Path, unfinished: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """As a process leaves it that is killed while it writes."""
    path = tmp_path / "trace.jsonl"
    path.write_bytes(b'{"task": "spam"}\n' + unfinished + b'\n{"task": "pos"}\n{"task": "spam"}\n' + unfinished)
    with caplog.at_level(logging.WARNING):
        assert read_trace(path, TASKS) == ["spam", None, "pos", "spam"]
    assert f"{path}:2: expected a JSON object" in caplog.text
    path.write_bytes(unfinished)
    with pytest.raises(ConfigError, match="expected a JSON object"):
        read_trace(path, TASKS)


def test_counts_are_no_visits(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"task": "spam"}\n{"requests": {"spam": 40, "gone": 2}, "switches": 3}\n{"task": "pos"}\n')
    assert read_trace(path, TASKS) == ["spam", "pos"]
    path.write_text('{"requests": {"spam": -1}, "switches": 3}\n')
    with pytest.raises(ConfigError, match=r"trace\.jsonl:1: expected counts"):
        read_trace(path, TASKS)


def test_a_task_twice_in_a_row_is_one_visit_where_time_matters(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    write_trace(path, [Visit("a", 0.0), Visit("a", 1.0), Visit("b", 2.0)])
    assert read_timed_visits(path, "ab") == (Visit("a", 0.0), Visit("b", 2.0))
    write_trace(path, [Visit("a", 0.0), Visit("a", 1.0)])
    with pytest.raises(ConfigError, match="expected at least one switch, found 1 visits"):
        read_timed_visits(path, "ab")
    write_trace(path, [Visit("a", 0.0), Visit("b")])
    with pytest.raises(ConfigError, match=r"trace\.jsonl:2: expected a time"):
        read_timed_visits(path, "ab")

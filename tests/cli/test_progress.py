"""What long work says of itself."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.progress import TextColumn

from weightpager.cli import output
from weightpager.cli.progress import Bars, Lines, progress


class Log:
    """Lines of progress, under a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self._file = io.StringIO()
        self.tell = Lines(Console(file=self._file, width=100), lambda: self.now, whole="whole compile")

    @property
    def lines(self) -> list[str]:
        return self._file.getvalue().splitlines()


def test_a_log_has_a_line_when_a_stage_begins() -> None:
    log = Log()
    for done in range(4):
        log.tell("calibrate", done, 3)
    log.tell("fine-tune [spam]", 1, 960)
    assert log.lines == ["calibrate …", "fine-tune [spam] …"]


def test_a_log_says_once_a_minute_how_far_a_stage_is_and_how_long_it_will_take() -> None:
    log = Log()
    for done in range(100, 901):  # resumed behind its hundredth step
        log.tell("fine-tune", done, 900)
        log.now += 1.0
    assert log.lines[:3] == ["fine-tune …", "fine-tune: 160 of 900, 12 min left", "fine-tune: 220 of 900, 11 min left"]
    assert log.lines[-1] == "fine-tune: 880 of 900, less than a minute left"


def test_long_times_are_told_in_hours() -> None:
    log = Log()
    for done in range(3):
        log.tell("refit", done, 62)
        log.now += 100.0
    assert log.lines[-1] == "refit: 2 of 62, 1 h 40 min left"


def test_a_stage_that_begins_once_more_is_told_of_once_more() -> None:
    log = Log()
    for done in (0, 1, 2, 0):
        log.tell("measure", done, 2)
        log.now += 40.0
    assert log.lines == ["measure …"] * 2


def test_how_much_longer_the_whole_takes_is_said_at_once_and_with_its_stages() -> None:
    log = Log()
    for done in range(1, 101):
        log.now += 1.0
        log.tell("fine-tune", done, 600)
        log.tell("whole compile", done, 1200)
    assert log.lines == [
        "fine-tune …",
        "whole compile: 20 min left",
        "fine-tune: 61 of 600, 9 min left; whole compile: 19 min left",
    ]


def test_a_time_left_that_is_exceeded_is_said_anew() -> None:
    log = Log()
    for now, done in (
        (5, 5),
        (40, 40),
        (64, 64),
        (66, 66),
        (67, 67),
        (127, 127),
    ):  # all the while half a minute is left
        log.now = float(now)
        log.tell("whole compile", done, done + 30)
    log.tell("write", 0, 1)
    assert log.lines == ["whole compile: less than a minute left"] * 3 + ["write …"]


def test_a_person_sees_the_whole_first_and_how_much_longer_it_takes() -> None:
    said = io.StringIO()
    columns = (TextColumn("{task.description}|{task.fields[steps]}|{task.fields[left]}"),)
    with RichProgress(*columns, console=Console(file=said, width=100)) as view:
        bars = Bars(view, "whole compile")
        bars("fine-tune", 60, 600)
        bars("whole compile", 60, 1200)
    lines = said.getvalue().splitlines()
    assert lines[-2].strip() == "whole compile||19 min left"
    assert lines[-1].strip() == "fine-tune|60/600|"


def test_quiet_work_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(output, "errors", lambda: Console(file=said))
    with progress(quiet=True) as told:
        told("calibrate", 0, 1)
    assert said.getvalue() == ""

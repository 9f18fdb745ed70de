"""`inspect`, `plan` and `simulate` of several bundles that share a budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import weightpager as wp
from command import Command


def facts(weightpager: Command, *arguments: object) -> Any:
    done = weightpager(*arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def words(weightpager: Command, *arguments: object) -> str:
    done = weightpager(*arguments)
    assert done.code == 0, done.err
    return " ".join(done.out.split())


def test_inspect_says_what_budgets_hold(weightpager: Command, drawn_paths: list[Path]) -> None:
    found = facts(weightpager, "inspect", *drawn_paths)
    assert found["budget"] is None
    with pytest.raises(wp.BudgetError) as refused:
        wp.Models.from_pretrained(drawn_paths, budget=1000)
    assert found["smallest_budget"] == refused.value.smallest
    with wp.Models.from_pretrained(drawn_paths) as models:
        assert found["largest_budget"] == models.budget
        for each in found["bundles"]:
            bounds = models.bundles[each["bundle"]].bounds
            assert (each["smallest_bytes"], each["largest_bytes"]) == (bounds.kept, bounds.least)
            assert each["asleep_bytes"] == 0 < each["waking_bytes"] < each["smallest_bytes"]
    assert found["all_awake_budget"] == sum(each["smallest_bytes"] for each in found["bundles"])
    assert "smallest │" in weightpager("inspect", *drawn_paths).out.replace("┃", "│")
    tight = found["smallest_budget"]
    shown = words(weightpager, "inspect", *drawn_paths, "--budget", tight)
    assert (shown.count("yes"), shown.count("no │")) == (1, 3)
    assert "does not fit" not in shown
    assert "note: large/" in words(weightpager, "inspect", *drawn_paths, "--budget", tight - 1)
    assert facts(weightpager, "inspect", *drawn_paths, "--budget", tight - 1)["tasks_that_do_not_fit"]


def test_plan_finds_the_worst_switch_of_all(weightpager: Command, drawn_paths: list[Path]) -> None:
    sizes = facts(weightpager, "inspect", *drawn_paths)
    arguments = "plan", *drawn_paths, "--worst", "--budget"
    calm = facts(weightpager, *arguments, sizes["without_sleep_budget"])
    tight = facts(weightpager, *arguments, sizes["without_sleep_budget"] - 1)
    assert calm["waking_bytes"] == 0 < tight["waking_bytes"]
    assert calm["at_most_ms"] < 30 < tight["at_most_ms"] == tight["from_empty"]["at_most_ms"]
    assert tight["from"].partition("/")[0] != tight["to"].partition("/")[0]
    for start in wp.Models.from_pretrained(drawn_paths).tasks:
        switch = facts(weightpager, "plan", *drawn_paths, "--from", start, "--to", tight["to"])
        if start.partition("/")[0] == tight["to"].partition("/")[0]:
            assert switch["waking_bytes"] == 0
            assert switch["bytes"] < tight["bytes"] or start == tight["to"]
        else:
            assert switch["bytes"] == tight["bytes"], "without a budget no bundle sleeps"
            assert switch["waking_bytes"] == 0
    assert "bytes to wake its bundle" in words(weightpager, *arguments, sizes["smallest_budget"])
    assert "note: large/" in words(weightpager, *arguments, sizes["smallest_budget"] - 1)


def test_simulate_compares_ways_to_use_the_budget(
    weightpager: Command, drawn_paths: list[Path], tmp_path: Path
) -> None:
    sizes = facts(weightpager, "inspect", *drawn_paths)
    trace = tmp_path / "day.jsonl"
    tasks = ["small/task-00", "middle/task-01", "task-03", "large/task-02"]
    rows = ({"task": tasks[number % 4], "time": number} for number in range(24))
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = "simulate", *drawn_paths, "--trace", trace, "--budget"
    found = facts(weightpager, *arguments, sizes["all_awake_budget"])
    assert found["visits"] == 24
    assert {row["policy"] for row in found["waiting"]} | {*found["smallest_budgets"]} == {
        *("shared", "shared, prefetch", "split", "whole models")
    }
    assert "note: split: the budget is too small" in words(weightpager, *arguments, sizes["smallest_budget"])
    assert "23 switches of" in words(weightpager, *arguments, sizes["largest_budget"], "-q")
    named = facts(weightpager, "simulate", *drawn_paths, "--trace", "mail", "--switches", 50)
    assert named["waiting"][0]["wakings"] == 0


def test_what_is_said_wrongly_of_several_is_refused(
    weightpager: Command, drawn_paths: list[Path], tmp_path: Path
) -> None:
    trace = tmp_path / "day.jsonl"
    trace.write_text('{"task": "task-00", "time": 1}\n')
    several = "several bundles have it"
    for refused, arguments in {
        "expected different names": ("inspect", drawn_paths[0], drawn_paths[0]),
        several: ("plan", *drawn_paths, "--to", "task-00"),
        "unknown task 'small/no'": ("plan", *drawn_paths, "--to", "small/no"),
        "--rows: expected it for one bundle": ("plan", *drawn_paths, "--worst", "--rows", "1MiB"),
        "expected one of small/task-00": ("simulate", *drawn_paths, "--trace", trace),
        "expected them for one bundle": ("simulate", *drawn_paths, "--trace", "mail", "--replicas", 2),
        "expected either --to": ("plan", *drawn_paths),
    }.items():
        done = weightpager(*arguments)
        assert (done.code, refused in " ".join(done.err.split())) == (2, True), done.err
    for verb in (("plan", "--worst"), ("simulate", "--trace", "mail")):
        done = weightpager(verb[0], *drawn_paths, *verb[1:], "--budget", "10KiB")
        assert done.code == 1
        assert "smallest" in done.err

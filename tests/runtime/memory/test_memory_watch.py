"""A budget that is more than the machine has is said in the log, with figures and with what to do."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

import weightpager as wp
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import Footprint, footprint
from weightpager.machine.memory import read_memory
from weightpager.runtime.budget import MemoryNeeds
from weightpager.runtime.memory.host_arena import Arena
from weightpager.runtime.memory.memory_budget import MemoryBudget, MemoryWatch
from weightpager_lab.limits.cgroup import run_limited

PAGE, MIB = 1 << 16, 1 << 20

NEEDS = MemoryNeeds(pages=1000, least_pages=20, page_bytes=PAGE, footprint=Footprint(3 * MIB, 2 * MIB, 1 * MIB))


def machine(root: Path, available: int, group: tuple[int, int] | None = None) -> None:
    """A root whose files tell of so much memory, and of a control group with a limit and of what it uses."""
    own = root / "sys/fs/cgroup/job"
    for directory in (root / "proc/self", own):
        directory.mkdir(parents=True, exist_ok=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {1 << 20} kB\nMemAvailable: {available >> 10} kB\n")
    (root / "proc/self/mountinfo").write_text("30 29 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n")
    (root / "proc/self/cgroup").write_text("0::/job\n")
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("memory\n")
    (own / "memory.max").write_text(str(group[0]) if group else "max")
    (own / "memory.current").write_text(str(group[1] if group else 0))


def watch(root: Path, budget: int) -> tuple[MemoryBudget, MemoryWatch]:
    memory = MemoryBudget(budget, NEEDS)
    return memory, MemoryWatch(memory, partial(read_memory, root))


def test_enough_is_not_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine(tmp_path, 40 * MIB, (80 * MIB, 40 * MIB))
    memory, found = watch(tmp_path, 40 * MIB)
    found.check(memory.use.total)
    assert found.available() == 40 * MIB
    assert caplog.messages == []


def test_too_little_is_said_with_the_budget_that_would_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine(tmp_path, 30 * MIB)
    memory, found = watch(tmp_path, 40 * MIB)
    found.check(memory.use.total)
    (said,) = caplog.messages
    assert "the budget of 40.0 MiB has still to take 40.0 MiB, and this machine has 30.0 MiB available" in said
    assert f"state a budget of at most 30.0 MiB ({30 * MIB} bytes), or free some memory" in said


def test_a_tight_group_is_a_cause_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine(tmp_path, 30 * MIB, (64 * MIB, 44 * MIB))
    memory, found = watch(tmp_path, 40 * MIB)
    found.check(memory.use.total)
    assert found.available() == 20 * MIB
    machine_, group = caplog.messages
    assert "this machine has 30.0 MiB" in machine_
    assert "control group and those around it (the tightest is 64.0 MiB) leave 20.0 MiB" in group
    assert "at most 20.0 MiB" in group
    assert "raise the limit" in group


def test_each_cause_is_said_once_until_it_has_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine(tmp_path, 30 * MIB)
    memory, found = watch(tmp_path, 40 * MIB)
    for _ in range(3):
        found.check(memory.use.total)
    assert len(caplog.messages) == 1
    machine(tmp_path, 60 * MIB)
    found.check(memory.use.total)
    assert len(caplog.messages) == 1
    machine(tmp_path, 30 * MIB)
    found.check(memory.use.total)
    assert len(caplog.messages) == 2


def test_where_nothing_would_do_no_budget_is_advised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    machine(tmp_path, 5 * MIB)
    memory, found = watch(tmp_path, 40 * MIB)
    found.check(memory.use.total)
    (said,) = caplog.messages
    assert "free some memory: not even the smallest budget that would do, 7.3 MiB, can be had" in said


def test_a_machine_that_tells_nothing_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory, found = watch(tmp_path, 40 * MIB)
    found.check(memory.use.total)
    assert found.available() is None
    assert caplog.messages == []


def test_only_slots_that_nobody_asked_for_are_still_to_be_taken() -> None:
    arena = Arena(200, 100, PAGE)
    assert arena.untouched == 100 * PAGE
    for slot in (0, 1, 99, 1):
        arena.content(slot)[0] = 1
    assert arena.untouched == 97 * PAGE
    arena.release([99, 98])
    assert arena.untouched == 96 * PAGE
    arena.commit(range(98, 200))
    assert arena.untouched == 198 * PAGE


def test_an_engine_reports_what_is_available_and_checks_a_budget_that_grows(
    assistant_bundle: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    bundle = Bundle.open(assistant_bundle)
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        available = engine.report().available_memory
        assert available is not None
        assert available > len(bundle.pages) * bundle.page_bytes
        assert caplog.messages == []
        machine(tmp_path, 1 << 10)
        whole = engine.report().budget
        engine._open.watch = MemoryWatch(engine._memory, partial(read_memory, tmp_path))
        for task in bundle.tasks:
            engine.activate(task)
        engine.set_budget(whole)  # all of it is in memory
        assert caplog.messages == []
        engine.deactivate()
        engine.evict()
        fixed = footprint(bundle)
        tables = fixed.all_tables - fixed.largest_table  # which give way before pages do
        engine.set_budget(whole - tables - 2 * bundle.page_bytes)
        assert caplog.messages == []
        engine.set_budget(whole)
        assert ["has still to take" in said for said in caplog.messages] == [True]


@pytest.mark.slow
def test_a_real_control_group_is_warned_of(assistant_bundle: Path) -> None:
    code = (
        "import logging, sys, weightpager as wp; logging.basicConfig(level='WARNING');"
        "wp.Engine.from_pretrained(sys.argv[1], kv_reserve='4GiB', budget='5GiB').close()"
    )
    run = run_limited([sys.executable, "-c", code, str(assistant_bundle)], memory=2 << 30)
    if run.memory.in_force is None:
        pytest.skip(run.memory.note)
    assert run.exit_code == 0, run.stderr
    assert "control group and those around it (the tightest is 2.0 GiB) leave" in run.stderr
    assert "raise the limit" in run.stderr

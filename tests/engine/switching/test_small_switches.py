"""Switches that load little: all is read before anything is given up, by the thread that switches."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import weightpager as wp
from encoder_tasks import TASKS, logits, room_for, room_in_use
from engines import InThread, settle
from weightpager.bundle import Bundle
from weightpager.errors import BudgetError, BusyError, EngineClosedError, PageCorruptError
from weightpager.runtime.memory.memory_budget import TableCache
from weightpager.runtime.paging.pager import LandedPages, Pager, PrefetchedPages
from weightpager.runtime.paging.residency import TaskGate
from weightpager.runtime.paging.switch import Switch
from weightpager.runtime.planning.block_manager import EvictionOrder

pytest.importorskip("weightpager.kernels._native")

Meanwhile = Callable[[Callable[[], object]], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Meanwhile:
    """Has something happen once while the reads of the next switch are on their way."""

    def during(do: Callable[[], object]) -> None:
        wait = LandedPages.wait

        def waits(self: LandedPages, *of: object) -> None:
            monkeypatch.setattr(LandedPages, "wait", wait)
            do()
            wait(self, *of)  # type: ignore[arg-type]

        monkeypatch.setattr(LandedPages, "wait", waits)

    return during


def largest(bundle: Bundle) -> str:
    return max(TASKS, key=lambda task: len(bundle.pages_of(task)))


def that_dont_fit(bundle: Bundle, engine: wp.Engine) -> tuple[str, str]:
    """The largest task, and another that has no room beside it."""
    old, new = largest(bundle), min(TASKS, key=lambda task: len(bundle.pages_of(task)))
    assert len(np.union1d(bundle.pages_of(old), bundle.pages_of(new))) > engine.blocks.slots
    return old, new


def test_nobody_else_reads(bundle: Bundle, expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Pager, "load")
    with wp.Engine.from_pretrained(bundle.path, budget=room_for(bundle, largest(bundle))) as engine:
        for task in (*TASKS, *TASKS):
            missing = len(set(bundle.pages_of(task).tolist()) - set(engine.blocks.resident().tolist()))
            assert torch.equal(logits(engine.activate(task)), expected[task])
            assert engine.report().active == (task,)
            switch = engine.report().switches[-1]
            assert (switch.pages, switch.bytes) == (missing, missing * bundle.page_bytes)
            assert switch.seconds >= switch.load_seconds
            assert engine.report().memory.total <= engine.report().budget
        settle(engine)


def damage(bundle: Bundle, copy: Path, page: int) -> Callable[[], object]:
    """Changes a page in a copy of a bundle; what undoes that."""
    name, first, count = next(iter(bundle.manifest.page_ranges()))
    file = copy / name
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) - (count - page + first) * bundle.page_bytes] ^= 1
    file.write_bytes(damaged)
    return lambda: file.write_bytes(whole)


def test_a_page_that_cannot_be_read_never_costs_the_old_task(
    bundle: Bundle, expected: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Though both don't fit together: a long load would have given it up before."""
    path = shutil.copytree(bundle.path, tmp_path / "bundle")
    with wp.Engine.from_pretrained(path, budget=room_for(bundle, largest(bundle))) as engine:
        old, new = that_dont_fit(bundle, engine)
        last = int(np.setdiff1d(bundle.pages_of(new), bundle.pages_of(old))[-1])
        engine.activate(old)
        mend = damage(bundle, path, last)
        with pytest.raises(PageCorruptError, match=f"page {last}"):
            engine.activate(new)
        assert engine.report().active == (old,)
        assert torch.equal(logits(engine.module(old)), expected[old])
        settle(engine)
        mend()
        assert torch.equal(logits(engine.activate(new)), expected[new])


def test_an_error_that_is_kept_keeps_no_lane(bundle: Bundle, tmp_path: Path) -> None:
    """Closing would wait for it, and after a few of them nobody could read."""
    path = shutil.copytree(bundle.path, tmp_path / "bundle")
    with wp.Engine.from_pretrained(path) as engine:
        damage(bundle, path, int(bundle.pages_of("animal")[0]))
        with pytest.raises(PageCorruptError) as kept:
            engine.activate("animal")
        own_reads = engine._open._paging.pager.own_reads
        assert own_reads is not None
        assert own_reads.close(0.1)
        assert kept.value.__traceback__ is not None


@pytest.mark.parametrize("spare", range(0, 12, 2))
def test_a_task_that_others_enter_meanwhile_keeps_its_pages(
    bundle: Bundle, expected: dict[str, torch.Tensor], meanwhile: Meanwhile, spare: int
) -> None:
    """Those were to be evicted; there may be another way, or none."""
    budget = room_in_use(bundle, "animal", "weather") + spare * bundle.page_bytes
    with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:
        engine.activate("weather")
        engine.activate("animal")
        entered = ExitStack()

        def enter() -> None:
            with suppress(BusyError):  # it isn't resident
                entered.enter_context(engine.task("weather", timeout=0))

        meanwhile(enter)
        try:
            active = "number"
            engine.activate(active)
        except BudgetError:
            active = "animal"
        assert engine._holds.current == active
        for task in engine.report().active:
            assert torch.equal(logits(engine.module(task)), expected[task])
        entered.close()
        settle(engine)


def pressed_once(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Stands in for a step before which Ctrl-C is pressed; all that was replaced is itself again."""

    def pressed(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    return pressed


@pytest.mark.parametrize("where", ["wait", "place"])
def test_ctrl_c_loses_no_slot(
    bundle: Bundle, expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    with wp.Engine.from_pretrained(bundle.path, budget=room_for(bundle, largest(bundle))) as engine:
        old, new = that_dont_fit(bundle, engine)
        engine.activate(old)
        monkeypatch.setattr(LandedPages, where, pressed_once(monkeypatch))
        with pytest.raises(KeyboardInterrupt):
            engine.activate(new)
        assert engine.report().active == ((old,) if where == "wait" else ())
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task)), expected[task])
        settle(engine)


@pytest.mark.parametrize("small", [True, False], ids=["small", "in two phases"])
def test_ctrl_c_before_a_task_is_given_up_keeps_nobody_out(
    bundle: Bundle, expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    with wp.Engine.from_pretrained(bundle.path, budget=room_for(bundle, largest(bundle))) as engine:
        old, new = that_dont_fit(bundle, engine)
        engine.activate(old)
        if not small:
            monkeypatch.setattr(Switch, "_load_small", lambda *_: None)
        monkeypatch.setattr(Switch, "_commit", pressed_once(monkeypatch))
        with pytest.raises(KeyboardInterrupt):
            engine.activate(new)
        assert engine.report().active == (old,)
        assert not engine._open._paging.committing  # else all that follows would wait for ever
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task)), expected[task])
        settle(engine)


@pytest.mark.parametrize(("owner", "step"), [(EvictionOrder, "used"), (PrefetchedPages, "needed"), (TaskGate, "hold")])
def test_ctrl_c_while_a_resident_task_is_entered_leaves_it_to_nobody(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, owner: type, step: str
) -> None:
    with wp.Engine.from_pretrained(bundle.path) as engine:
        with engine.task("animal"):
            assert engine._memory.tables.in_use > 0
        monkeypatch.setattr(owner, step, pressed_once(monkeypatch))
        with pytest.raises(KeyboardInterrupt), engine.task("animal"):
            raise AssertionError("the block was entered")
        assert engine.report().active == ()
        assert engine.blocks.locked().size == engine._memory.tables.in_use == 0
        settle(engine)


@pytest.mark.parametrize("resident", [True, False])
def test_ctrl_c_at_the_end_of_a_hold_releases_its_tables(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    with wp.Engine.from_pretrained(bundle.path) as engine:
        if resident:
            with engine.task("animal"):
                pass
        hold = TableCache.hold

        def pressed(*of: Any) -> bool:
            monkeypatch.undo()
            held = hold(*of)
            os.kill(os.getpid(), signal.SIGINT)
            return held

        monkeypatch.setattr(TableCache, "hold", pressed)
        with pytest.raises(KeyboardInterrupt), engine.task("animal"):
            raise AssertionError("the block was entered")
        assert engine.blocks.locked().size == engine._memory.tables.in_use == 0
        settle(engine)


def test_closing_meanwhile_tells_whoever_switches(bundle: Bundle, meanwhile: Meanwhile) -> None:
    engine = wp.Engine.from_pretrained(bundle.path)
    engine.activate("animal")
    closing: list[InThread] = []

    def close() -> None:
        closing.append(InThread(engine.close))
        while not engine._open._paging.closed:
            threading.Event().wait(0.001)

    meanwhile(close)
    with pytest.raises(EngineClosedError, match="while pages were being loaded"):
        engine.activate("weather")
    closing[0].result()


@pytest.mark.slow
def test_threads_that_switch_and_share_tasks_get_right_answers(
    bundle: Bundle, expected: dict[str, torch.Tensor]
) -> None:
    wrong: list[str] = []
    with wp.Engine.from_pretrained(bundle.path, budget=room_in_use(bundle, "animal", "weather")) as engine:

        def use(seed: int) -> None:
            for which in np.random.default_rng(seed).integers(0, len(TASKS), 40):
                task = TASKS[which]
                try:
                    with engine.task(task, timeout=20) as module:
                        if not torch.equal(logits(module), expected[task]):
                            wrong.append(task)
                except BudgetError:
                    pass

        threads = [InThread(lambda seed=seed: use(seed)) for seed in range(3)]  # type: ignore[misc]
        for thread in threads:
            thread.result()
        assert wrong == []
        assert engine.report().active == ()
        settle(engine)

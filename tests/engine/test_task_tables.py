"""Expanded block tables of an engine: they come and go with the tasks in use, and answers don't change."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import weightpager as wp
from encoder_tasks import TASKS, logits
from engines import InThread, hanging
from faults import FaultyStore
from locked_memory import lock
from placements import Drawn, placements
from weightpager.bundle import Bundle, garbage
from weightpager.bundle.footprint import footprint
from weightpager.bundle.format.block_table import FIELDS
from weightpager.config import EngineConfig
from weightpager.engine import open_task
from weightpager.engine.open_task import BlockTables, TableSource
from weightpager.errors import BudgetError, StoreError, TaskTooLargeError
from weightpager.store import LocalStore


def right(tables: BlockTables, drawn: Drawn, task: int, numbers: np.ndarray) -> bool:
    wanted = drawn.placement.tables(task, numbers)
    found = tables.tables
    assert list(found) == list(wanted)
    return all(np.array_equal(getattr(found[name], f), getattr(wanted[name], f)) for name in wanted for f in FIELDS)


@pytest.mark.parametrize("native", [True, False])
@given(drawn=placements(), seed=st.integers(0, 2**32))
def test_tables_are_expanded_as_the_placement_says(native: bool, drawn: Drawn, seed: int) -> None:
    pages = len(drawn.placement.layers)
    numbers = np.random.default_rng(seed).permutation(2 * pages + 1)[:pages].astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_task, "NATIVE", open_task.NATIVE if native else ())
        source = TableSource(drawn.placement, numbers)
    for task in range(3):
        tables = BlockTables(source, task)
        address = next(iter(tables.tables.values())).crow_indices.ctypes.data
        for _ in range(2):
            tables.expand()
            assert right(tables, drawn, task, numbers)
            tables.give_back()
            assert not any(getattr(table, field).any() for table in tables.tables.values() for field in FIELDS)
        assert next(iter(tables.tables.values())).crow_indices.ctypes.data == address


@given(drawn=placements())
@settings(max_examples=5)
def test_tables_in_locked_memory_are_given_back_all_the_same(drawn: Drawn) -> None:
    numbers = np.arange(len(drawn.placement.layers), dtype=np.int64)
    tables = BlockTables(TableSource(drawn.placement, numbers), 0)
    tables.expand()
    lock(tables.entries)
    tables.give_back()
    tables.expand()
    assert right(tables, drawn, 0, numbers)


def expanded(engine: wp.Engine) -> set[str]:
    return {name for name, task in engine._open.tasks.items() if task.tables.blocks in engine._memory.tables._here}


def test_a_budget_for_one_task_holds_one_tasks_tables(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    most = max(len(bundle.pages_of(task)) for task in TASKS)
    budget = footprint(bundle).total + most * bundle.page_bytes
    with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:
        for task in TASKS * 2:
            assert torch.equal(logits(engine.activate(task)), expected[task])
            memory = engine.report().memory
            assert memory.total <= budget
            assert (
                engine._memory.tables.taken <= engine._memory.tables.size == memory.tables - footprint(bundle).placement
            )
            assert task in expanded(engine)
        assert len(expanded(engine)) < len(TASKS)


def test_a_budget_for_everything_holds_all_tables(bundle: Bundle) -> None:
    with wp.Engine.from_pretrained(bundle.path) as engine:
        for task in TASKS:
            engine.activate(task)
        assert expanded(engine) == set(TASKS)
        assert engine.report().memory.total == engine.report().budget
        assert engine.report().memory.tables == footprint(bundle).placement + footprint(bundle).all_tables


def test_tables_are_expanded_while_storage_works(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    with hanging(bundle) as (engine, store):
        engine.activate("animal")
        store.hang()
        switch = InThread(lambda: engine.activate("weather"))
        store.wait_for_a_read()
        while "weather" not in expanded(engine):
            assert switch.is_alive()
            time.sleep(0.001)
        store.resume()
        assert torch.equal(logits(switch.result()), expected["weather"])


def test_a_load_that_fails_holds_no_tables(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    store = FaultyStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        engine.activate("animal")
        held = engine._memory.tables.in_use
        store.failing = 1000
        with pytest.raises(StoreError):
            engine.activate("weather")
        store.failing = 0
        assert engine._memory.tables.in_use == held
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])


def test_tables_of_tasks_in_use_take_the_place_of_pages(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    fixed = footprint(bundle)
    every = len(np.unique(np.concatenate([bundle.pages_of(task) for task in TASKS])))
    budget = fixed.largest + every * bundle.page_bytes - 1  # a byte too small for everything
    with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:
        for task in TASKS[:-1]:
            engine.pin(task)
        assert set(TASKS[:-1]) <= expanded(engine)
        assert engine.report().memory.total <= budget
        for task in TASKS[:-1]:
            assert torch.equal(logits(engine.module(task)), expected[task])
            engine.unpin(task)
        engine.set_budget(budget)
        assert engine.report().memory.total <= budget


def test_tasks_that_fit_but_for_their_tables_are_refused(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    fixed = footprint(bundle)
    a, b = TASKS[:2]
    together = len(np.union1d(bundle.pages_of(a), bundle.pages_of(b)))
    with wp.Engine.from_pretrained(bundle.path, budget=fixed.total + together * bundle.page_bytes) as engine:
        with engine.task(a) as module:
            before = engine.report().slots
            with pytest.raises(BudgetError, match="smallest budget that would do"), engine.task(b):
                pass
            assert torch.equal(logits(module), expected[a])
            assert (engine.report().active, engine.report().slots) == ((a,), before)
        engine.activate(a)
        assert torch.equal(logits(engine.activate(b)), expected[b])  # the one that is left gives its tables up
    with pytest.raises((BudgetError, TaskTooLargeError)) as refused:
        wp.Engine.from_pretrained(bundle.path, budget=fixed.total + together * bundle.page_bytes, real_time=[a, b])
    with wp.Engine.from_pretrained(bundle.path, budget=refused.value.smallest, real_time=[a, b]) as engine:
        assert torch.equal(logits(engine.module(a)), expected[a])


def test_tables_outlive_a_reload_that_leaves_their_task(
    assistant_bundle: Path, tmp_path: Path, expected: dict[str, torch.Tensor]
) -> None:
    copy = Path(shutil.copytree(assistant_bundle, tmp_path / "copy.bundle"))
    with wp.Engine.from_pretrained(copy) as engine:
        modules = {task: engine.module(task) for task in TASKS}
        garbage.collect(copy, drop=["animal"])
        old = engine._open.tasks["colour"].tables.blocks._origin
        engine.reload()
        assert (
            engine._open.tasks["colour"].tables.blocks._origin != old
        )  # else the old state of the bundle stays in memory
        for _ in range(2):
            for task in TASKS[1:]:
                engine.activate(task)
                assert torch.equal(logits(modules[task]), expected[task])
            engine.deactivate()
            engine._memory.tables.resize(0)  # all go
            assert expanded(engine) == set()
            engine._memory.tables.resize(footprint(engine.bundle).all_tables)


def test_many_threads_find_their_tables(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    fixed = footprint(bundle)
    most = max(len(bundle.pages_of(task)) for task in TASKS)
    wrong: list[str] = []

    def work(engine: wp.Engine, task: str) -> None:
        for _ in range(10):
            with engine.task(task, timeout=30) as module:
                if not torch.equal(logits(module), expected[task]):
                    wrong.append(task)

    with wp.Engine.from_pretrained(bundle.path, budget=fixed.total + (most + 3) * bundle.page_bytes) as engine:
        threads = [threading.Thread(target=work, args=(engine, task)) for task in TASKS * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert engine.report().memory.total <= engine.report().budget
    assert wrong == []

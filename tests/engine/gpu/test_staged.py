"""An engine whose pages pass through staging, on a device whose copies are late: what a GPU needs, without one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

import weightpager as wp
from devices import LateCopier
from encoder_tasks import TASKS, logits
from engines import settle
from faults import FaultyStore, HangingStore
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.config import EngineConfig
from weightpager.errors import (
    BudgetError,
    EngineClosedError,
    PageCorruptError,
    StoreError,
    StoreTimeoutError,
    SwitchFailedError,
)
from weightpager.runtime.memory.staged_arena import StagedArena, Staging
from weightpager.store import LocalStore, PageStore


@pytest.fixture
def copier() -> Iterator[LateCopier]:
    made = LateCopier()
    yield made
    made.finish()


@contextmanager
def staged(
    bundle: Bundle,
    copier: LateCopier,
    open_store: Callable[[Bundle], PageStore] = LocalStore,
    *,
    buffers: int = 2,
    **config: object,
) -> Iterator[wp.Engine]:
    with wp.Engine(bundle, EngineConfig(**config), open_store, Staging(copier, buffers)) as engine:  # type: ignore[arg-type]
        assert isinstance(engine._memory.arena, StagedArena)
        yield engine


def staged_room(bundle: Bundle, copier: LateCopier, *tasks: str, buffers: int = 2) -> int:
    """The budget that just holds these tasks together, the staging buffers, and all tasks' block tables."""
    pages = set().union(*(bundle.pages_of(task).tolist() for task in tasks))
    staging = Staging(copier, buffers).bytes(bundle.page_bytes)
    return footprint(bundle).largest + len(pages) * bundle.page_bytes + staging


@pytest.mark.parametrize("buffers", [1, 4])
@pytest.mark.parametrize("wait", [True, False])
def test_outputs_are_those_of_a_direct_arena(
    bundle: Bundle, copier: LateCopier, expected: dict[str, torch.Tensor], buffers: int, wait: bool
) -> None:
    budget = max(staged_room(bundle, copier, task, buffers=buffers) for task in TASKS)
    with staged(bundle, copier, buffers=buffers, budget=budget) as engine:
        for task in (*TASKS, *reversed(TASKS), "number", "animal"):
            assert torch.equal(logits(engine.activate(task, wait=wait)), expected[task])
        report = engine.report()
        assert report.memory.total <= report.budget
        assert report.memory.staging == buffers << 20
        settle(engine)


def test_a_page_is_published_only_when_its_copy_has_ended(
    bundle: Bundle, copier: LateCopier, expected: dict[str, torch.Tensor]
) -> None:
    with staged(bundle, copier, read_timeout=0.2) as engine:
        engine.activate("animal")
        copier.copying.hold()
        with pytest.raises(StoreTimeoutError):
            engine.activate("weather")
        only = set(bundle.pages_of("weather").tolist()) - set(bundle.pages_of("animal").tolist())
        assert not only & set(engine.blocks.resident().tolist())
        assert torch.equal(logits(engine.activate("animal")), expected["animal"])
        copier.copying.go_on()
        settle(engine)
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])


def test_slots_are_not_refilled_while_kernels_of_the_task_that_left_are_late(
    bundle: Bundle, copier: LateCopier, expected: dict[str, torch.Tensor]
) -> None:
    budget = max(staged_room(bundle, copier, task) for task in ("animal", "weather"))
    with staged(bundle, copier, budget=budget, read_timeout=0.2) as engine:
        module = engine.activate("animal")
        arena, pages = engine._memory.arena, engine.blocks.resident()
        slots = engine.blocks.page_table[pages].tolist()
        before = arena.pages[slots].clone()
        copier.computing.hold()
        logits(module)  # its layers' reads are noted, and have not run as far as the device says
        with pytest.raises(SwitchFailedError, match="delivered nothing"):
            engine.activate("weather")
        assert torch.equal(arena.pages[slots], before)
        copier.computing.go_on()
        settle(engine)
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])


def test_damage_is_found_and_repaired_on_the_device(
    bundle: Bundle, copier: LateCopier, expected: dict[str, torch.Tensor]
) -> None:
    with staged(bundle, copier) as engine:
        module = engine.activate("animal")
        pages = engine.blocks.resident()[[0, 3]].tolist()
        for page in pages:
            engine._memory.arena.pages[int(engine.blocks.page_table[page]), 17] ^= 8
        assert engine.verify() == pages
        assert engine.repair() == pages
        assert engine.verify() == []
        assert torch.equal(logits(module), expected["animal"])


def test_damaged_and_failing_reads_never_reach_the_device(
    bundle: Bundle, copier: LateCopier, expected: dict[str, torch.Tensor]
) -> None:
    store = FaultyStore(LocalStore(bundle))
    with staged(bundle, copier, lambda _: store, io_threads=1) as engine:
        animal = engine.activate("animal")
        store.damaging = 1
        with pytest.raises(PageCorruptError):
            engine.activate("weather")
        store.failing = 1
        with pytest.raises(StoreError, match="cable"):
            engine.activate("weather")
        assert torch.equal(logits(animal), expected["animal"])
        settle(engine)
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])


def test_a_copy_that_fails_leaves_the_old_task(
    bundle: Bundle, copier: LateCopier, expected: dict[str, torch.Tensor]
) -> None:
    with staged(bundle, copier) as engine:
        animal = engine.activate("animal")
        copier.failing = 1
        with pytest.raises(StoreError, match="cannot copy pages to cpu"):
            engine.activate("weather")
        assert engine.report().active == ("animal",)
        assert torch.equal(logits(animal), expected["animal"])
        settle(engine)
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])


def test_a_read_that_hangs_keeps_its_buffer_and_others_pass(
    bundle: Bundle, copier: LateCopier, expected: dict[str, torch.Tensor]
) -> None:
    store = HangingStore(LocalStore(bundle))
    with staged(bundle, copier, lambda _: store, buffers=2, read_timeout=0.2) as engine:
        late = set(bundle.pages_of("animal").tolist()) - set(bundle.pages_of("weather").tolist())
        store.hang([min(late)])
        with pytest.raises(StoreTimeoutError):
            engine.activate("animal")
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])
        store.resume()
        settle(engine)
        assert torch.equal(logits(engine.activate("animal")), expected["animal"])


def test_when_all_buffers_hang_loads_time_out_and_go_on_later(
    bundle: Bundle, copier: LateCopier, expected: dict[str, torch.Tensor]
) -> None:
    store = HangingStore(LocalStore(bundle))
    with staged(bundle, copier, lambda _: store, buffers=2, read_timeout=0.2) as engine:
        store.hang()
        for task in ("animal", "weather", "animal"):
            with pytest.raises(StoreTimeoutError):
                engine.activate(task)
        assert len(store.begun) == 2 == engine.blocks.loading
        store.resume()
        settle(engine)
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task)), expected[task])


def test_closing_drops_what_waits_for_a_buffer(bundle: Bundle, copier: LateCopier) -> None:
    store = HangingStore(LocalStore(bundle))
    with staged(bundle, copier, lambda _: store, buffers=1) as engine:
        store.hang()
        engine.activate("animal", wait=False)
        store.wait_for_a_read()
        pending = engine._open.tasks["animal"].gate._pending
        assert pending is not None
        closing = threading.Thread(target=engine.close)
        closing.start()
        with pytest.raises(EngineClosedError):
            pending.wait()
        store.resume()
        closing.join(60)
    assert len(store.begun) == 1


def test_a_budget_changes_while_the_engine_runs(
    bundle: Bundle, copier: LateCopier, expected: dict[str, torch.Tensor]
) -> None:
    with staged(bundle, copier) as engine:
        whole = engine.report().budget
        address = engine._memory.arena.pages.data_ptr()
        for task in TASKS:
            engine.activate(task)
        animal = engine.activate("animal")
        least = staged_room(bundle, copier, "animal")
        with pytest.raises(BudgetError) as error:
            engine.set_budget(least - 1)
        assert error.value.smallest == least
        engine.set_budget(least)
        assert engine.report().memory.total == least
        assert torch.equal(logits(animal), expected["animal"])
        engine.set_budget(whole)
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task)), expected[task])
        assert engine._memory.arena.pages.data_ptr() == address
        settle(engine)

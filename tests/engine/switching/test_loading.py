"""Loads in the background: who waits for what, who passes, and what happens when storage hangs or fails."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch

import weightpager as wp
from encoder_tasks import TASKS, logits, room_for, room_in_use
from engines import InThread, hanging, settle
from faults import FaultyStore, HangingStore
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig, format_enough
from weightpager.engine.task_holds import SwitchLog
from weightpager.errors import (
    BudgetError,
    BusyError,
    ConfigError,
    EngineClosedError,
    PageCorruptError,
    StoreError,
    StoreTimeoutError,
    SwitchFailedError,
    TaskNotActiveError,
    UnknownTaskError,
)
from weightpager.runtime.paging.page_waits import PendingPages, Waiters
from weightpager.runtime.paging.state import SwitchRequest
from weightpager.store import LocalStore, PageStore
from weightpager.trace_file import Visit


def test_a_model_runs_while_its_pages_are_loaded(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    with hanging(bundle, io_threads=1) as (engine, store):
        store.hang()
        module = engine.activate("animal", wait=False)
        running = InThread(lambda: logits(module))
        store.wait_for_a_read()
        running.join(0.1)
        assert running.is_alive()
        store.resume()
        assert torch.equal(running.result(), expected["animal"])
        report = engine.report().switches[-1]
        assert not report.waited
        assert report.bytes == len(bundle.pages_of("animal")) * bundle.page_bytes
        assert store.begun == sorted(store.begun)


class SlowStore(HangingStore):
    """Takes its time for some pages."""

    slow: Collection[int] = ()

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        if first in self.slow:
            time.sleep(0.7)
        super().read(first, into)


@pytest.mark.slow
def test_who_waits_behind_a_long_load_does_not_think_that_storage_hangs(bundle: Bundle) -> None:
    store = SlowStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(io_threads=1, read_timeout=2.5), lambda _: store) as engine:
        store.slow = set(bundle.pages_of("animal").tolist()) - set(bundle.pages_of("weather").tolist())
        assert 0.7 * len(store.slow) > 3.5  # all of them take longer than the timeout, and each far less
        with engine.task("animal", wait=False), engine.task("weather"):
            assert store.slow <= set(store.begun)
        settle(engine)


def test_pages_that_are_read_first_show_that_storage_works() -> None:
    pending, waiters = PendingPages([7], np.zeros(9, np.int32), 0.4, before=[0, 1, 2, 3, 7]), Waiters()
    waiters.add(pending)
    waiting = InThread(pending.wait)
    for page in range(4):
        time.sleep(0.2)
        waiters.passed([page])
    assert waiters.waiting_for([7]) == [pending]
    pending.arrived([7])
    waiting.result()


def test_pages_that_were_wanted_later_do_not_hide_that_storage_hangs() -> None:
    pending = PendingPages([7], np.zeros(9, np.int32), 0.1, before=[0, 7])
    waiting, end = InThread(pending.wait), time.monotonic() + 5
    while waiting.is_alive() and time.monotonic() < end:
        pending.passed([0, 8])
        time.sleep(0.01)
    with pytest.raises(StoreTimeoutError, match="nothing for 0.1 s, neither of the 1 pages outstanding"):
        waiting.result()


def test_a_layer_waits_for_its_own_pages_and_those_before() -> None:
    pending = PendingPages([3, 4, 5, 6], np.array([0, 0, 0, 1, 1, 3, 7], np.int32), 60.0)
    pending.wait_for(0)
    waiting = InThread(lambda: pending.wait_for(2))
    pending.arrived([3])
    waiting.join(0.05)
    assert waiting.is_alive()
    pending.arrived([4])
    waiting.result()
    assert not pending.complete
    pending.failed(StoreError("a bad sector"))
    for layer in (1, 2):
        pending.wait_for(layer)
    with pytest.raises(StoreError):
        pending.wait_for(3)


def test_a_page_that_cannot_be_loaded_raises_from_forward(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    store = FaultyStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        store.bad = {int(bundle.pages_of("animal")[-1])}
        module = engine.activate("animal", wait=False)
        with pytest.raises(SwitchFailedError, match="'animal' could not be loaded while it ran.*a bad sector"):
            logits(module)
        store.bad = set()
        assert torch.equal(logits(engine.activate("animal", wait=False)), expected["animal"])
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])
        engine.deactivate()
        assert engine.report().active == ()
        settle(engine)


def test_without_waiting_the_old_task_makes_room_at_once(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    budget = max(room_for(bundle, task) for task in TASKS)
    with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:
        for task in (*TASKS, *TASKS):
            old = engine.report().active
            assert torch.equal(logits(engine.activate(task, wait=False)), expected[task])
            assert engine.report().active == (task,) != old
        settle(engine)


def test_what_nobody_waits_for_any_more_is_not_read(bundle: Bundle) -> None:
    with hanging(bundle, io_threads=1) as (engine, store):
        store.hang()
        engine.activate("animal", wait=False)
        store.wait_for_a_read()
        engine.deactivate()
        store.resume()
        settle(engine)
        assert len(store.begun) == 1
        assert engine.blocks.resident().tolist() == store.begun


def test_a_resident_task_passes_a_switch_that_hangs(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    with hanging(bundle) as (engine, store):
        engine.activate("animal")
        store.hang()
        switching = InThread(lambda: engine.activate("weather"))
        store.begun.clear()
        store.wait_for_a_read()
        with engine.task("animal") as module:
            assert torch.equal(logits(module), expected["animal"])
        with pytest.raises(BusyError, match="another switch"), engine.task("number", timeout=0.05):
            pass
        assert engine.report().active == ("animal",)
        store.resume()
        assert torch.equal(logits(switching.result()), expected["weather"])


def test_a_disk_that_hangs_leaves_the_old_task_and_is_used_again_when_it_answers(
    bundle: Bundle, expected: dict[str, torch.Tensor]
) -> None:
    with hanging(bundle, read_timeout=0.2) as (engine, store):
        animal = engine.activate("animal")
        store.hang()
        with pytest.raises(StoreTimeoutError, match="delivered nothing for 0.2 s"):
            engine.activate("weather")
        assert engine.report().active == ("animal",)
        assert torch.equal(logits(animal), expected["animal"])
        with pytest.raises(StoreTimeoutError):
            engine.activate("weather")
        store.resume()
        settle(engine)
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])


def test_a_slot_that_a_late_read_may_still_fill_is_not_used(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    budget = max(room_for(bundle, task) for task in TASKS)
    with hanging(bundle, budget=budget, io_threads=2, read_timeout=0.2) as (engine, store):
        store.hang()
        with pytest.raises(StoreTimeoutError):
            engine.activate("animal")
        late = engine.blocks.loading
        assert late == 2
        assert engine.blocks.free == engine.blocks.slots - late
        store.resume()
        settle(engine)
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task)), expected[task])


def test_ctrl_c_during_a_load_leaves_a_sound_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(_: PendingPages) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with hanging(bundle, io_threads=2) as (engine, store):
        engine.activate("animal")
        store.hang()
        monkeypatch.setattr(PendingPages, "wait", pressed)
        with pytest.raises(KeyboardInterrupt):
            engine.activate("weather")
        assert engine.report().active == ("animal",)
        store.resume()
        engine.activate("weather")
        settle(engine)


@pytest.mark.parametrize(
    ("ask", "where", "open_store"),
    [
        (wp.Engine.activate, "pager.LandedPages.begin", LocalStore),
        (partial(wp.Engine.activate, wait=False), "native_reads.most_pages", LocalStore),
        (wp.Engine.prefetch, "native_reads.most_pages", LocalStore),
        (wp.Engine.activate, "thread_reads.coalesce", lambda bundle: FaultyStore(LocalStore(bundle))),
        (wp.Engine.prefetch, "thread_reads.coalesce", lambda bundle: FaultyStore(LocalStore(bundle))),
    ],
)
def test_ctrl_c_while_reads_are_planned_leaves_no_slot_taken(
    bundle: Bundle,
    expected: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    open_store: Callable[[Bundle], PageStore],
    ask: Callable[[wp.Engine, str], object],
) -> None:
    """It may take long: a task may need many pages."""

    def pressed(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with wp.Engine(bundle, EngineConfig(), open_store) as engine:
        monkeypatch.setattr(f"weightpager.runtime.paging.{where}", pressed)
        with pytest.raises(KeyboardInterrupt):
            ask(engine, "animal")
        assert torch.equal(logits(engine.activate("animal")), expected["animal"])
        settle(engine)


def test_ctrl_c_after_a_load_leaves_no_task_in_use(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    with wp.Engine.from_pretrained(bundle.path) as engine:
        engine.activate("animal")
        monkeypatch.setattr(SwitchLog, "record_switch", pressed)
        with pytest.raises(KeyboardInterrupt), engine.task("weather"):
            raise AssertionError("the block was entered")
        assert engine.report().active == ("animal",)
        assert engine.blocks.locked().tolist() == bundle.pages_of("animal").tolist()


def test_a_thread_waits_for_room_that_another_takes(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    budget = max(room_for(bundle, "animal"), room_for(bundle, "weather"))
    with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:

        def other() -> torch.Tensor:
            with engine.task("weather", timeout=30) as module:
                return logits(module)

        with engine.task("animal") as animal:
            with pytest.raises(BudgetError), engine.task("weather"):
                pass
            with pytest.raises(BudgetError), engine.task("weather", timeout=0.05):
                pass
            waiting = InThread(other)
            waiting.join(0.1)
            assert waiting.is_alive()
            assert torch.equal(logits(animal), expected["animal"])
        assert torch.equal(waiting.result(), expected["weather"])


def by_size(bundle: Bundle) -> tuple[str, str, set[int]]:
    """A task that doesn't need most pages, the one that does, and pages that only the first one of the two needs."""
    large = max(TASKS, key=lambda task: len(bundle.pages_of(task)))
    small = next(task for task in TASKS if task != large)
    return small, large, set(bundle.pages_of(small).tolist()) - set(bundle.pages_of(large).tolist())


def switched_when_it_reads_again(engine: wp.Engine, store: HangingStore, task: str) -> torch.Tensor:
    """Answers of a task whose switch waits for storage that hangs, until that goes on."""
    switching = InThread(lambda: logits(engine.activate(task)))
    switching.join(0.1)
    assert switching.is_alive()
    store.resume()
    return switching.result()


def test_the_slot_of_a_read_that_nobody_wants_any_more_is_waited_for(
    bundle: Bundle, expected: dict[str, torch.Tensor]
) -> None:
    small, large, only = by_size(bundle)
    with hanging(bundle, budget=room_for(bundle, large), io_threads=1) as (engine, store):
        store.hang(only)
        with engine.task(small, wait=False):
            store.wait_for_a_read(only)
        assert torch.equal(switched_when_it_reads_again(engine, store, large), expected[large])


def test_a_task_is_left_while_its_pages_are_still_being_loaded(
    bundle: Bundle, expected: dict[str, torch.Tensor]
) -> None:
    small, large, only = by_size(bundle)
    with hanging(bundle, budget=room_for(bundle, large), io_threads=1) as (engine, store):
        store.hang(only)
        engine.activate(small, wait=False)
        store.wait_for_a_read(only)
        assert torch.equal(switched_when_it_reads_again(engine, store, large), expected[large])
        settle(engine)


def test_slots_of_reads_that_hang_are_given_up_in_time(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    """It isn't the budget that is too small."""
    small, large, only = by_size(bundle)
    with hanging(bundle, budget=room_for(bundle, large), io_threads=1, read_timeout=0.2) as (engine, store):
        store.hang(only)
        with engine.task(small, wait=False):
            store.wait_for_a_read(only)
        with pytest.raises(StoreTimeoutError, match="whose memory is needed"):
            engine.activate(large)
        store.resume()
        assert torch.equal(logits(engine.activate(large)), expected[large])
        settle(engine)


def test_a_budget_that_needs_the_slot_of_a_read_that_hangs_is_refused_for_that(bundle: Bundle) -> None:
    large = by_size(bundle)[1]
    smallest = min(TASKS, key=lambda task: len(bundle.pages_of(task)))
    wanted = room_for(bundle, smallest)
    with hanging(bundle, budget=room_for(bundle, large), io_threads=1, read_timeout=0.2) as (engine, store):
        engine.set_budget(room_for(bundle, smallest, spare=1))
        with engine.task(smallest):
            engine.set_budget(room_in_use(bundle, large, smallest))
            store.begun.clear()
            store.hang()
            with engine.task(large, wait=False):
                store.wait_for_a_read()
            engine.set_budget(room_for(bundle, smallest, spare=1))
            with pytest.raises(StoreTimeoutError, match="whose memory is needed"):
                engine.set_budget(wanted)
            store.resume()
            settle(engine)
            engine.set_budget(wanted)
            assert engine.report().budget == wanted


def test_loading_from_an_engine_that_was_closed_says_so(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig()) as engine:
        residency = engine._residency
    with pytest.raises(EngineClosedError):
        residency.hold(SwitchRequest(0, "animal"))


def test_nobody_waits_for_room_that_can_never_be(bundle: Bundle) -> None:
    small, large = sorted(("animal", "weather"), key=lambda task: len(bundle.pages_of(task)))
    if len(bundle.pages_of(small)) == len(bundle.pages_of(large)):
        large = max(TASKS, key=lambda task: len(bundle.pages_of(task)))
        small = min(TASKS, key=lambda task: len(bundle.pages_of(task)))
    with wp.Engine.from_pretrained(bundle.path, budget=room_for(bundle, small)) as engine:
        start = time.monotonic()
        with pytest.raises(BudgetError), engine.task(large, timeout=60):
            pass
        assert time.monotonic() - start < 30


def test_a_budget_changes_while_the_engine_runs(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    with wp.Engine.from_pretrained(bundle.path) as engine:
        whole = engine.report().budget
        address = engine._memory.arena.pages.ctypes.data
        for task in TASKS:
            engine.activate(task)
        animal = engine.activate("animal")
        least = room_for(bundle, "animal")
        with pytest.raises(BudgetError, match=f"a budget of .*{least - 1} bytes.* is too small") as error:
            engine.set_budget(least - 1)
        assert error.value.smallest == least
        assert engine.report().budget == whole
        engine.set_budget(least)
        report = engine.report()
        assert report.budget == least == report.memory.total
        assert report.resident_pages == report.slots == len(bundle.pages_of("animal"))
        assert torch.equal(logits(animal), expected["animal"])
        with pytest.raises(BudgetError), engine.task("weather"):
            pass
        engine.set_budget(f"{10 * whole}B")
        assert engine.report().slots == len(bundle.pages)
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task)), expected[task])
        assert engine._memory.arena.pages.ctypes.data == address
        settle(engine)
        for wrong in ("a lot", 0, "-1MiB"):
            with pytest.raises(ConfigError, match="budget: expected"):
                engine.set_budget(wrong)


def test_memory_of_slots_that_are_given_up_goes_back_to_the_machine(bundle: Bundle) -> None:
    with wp.Engine.from_pretrained(bundle.path) as engine:
        for task in TASKS:
            engine.activate(task)
        engine.deactivate()
        written = [slot for slot in range(engine.blocks.slots) if any(engine._memory.arena.content(slot))]
        assert len(written) == len(bundle.pages)
        engine.set_budget(min(room_for(bundle, task) for task in TASKS))
        kept = [slot for slot in written if any(engine._memory.arena.content(slot))]
        assert len(kept) == engine.blocks.slots < len(written)


def test_real_time_tasks_never_leave(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    budget = max(room_in_use(bundle, "animal", task) for task in TASKS)
    config = EngineConfig(budget, real_time=("animal",))
    with wp.Engine(bundle, config) as engine:
        assert engine.report().active == ("animal",)
        for task in (*TASKS, *TASKS):
            engine.activate(task)
            engine.deactivate()
            engine.evict()
            assert set(bundle.pages_of("animal")) <= set(engine.blocks.resident())
        read = engine.report().bytes_read
        with engine.task("animal") as module:
            assert torch.equal(logits(module), expected["animal"])
        assert engine.report().bytes_read == read
        with pytest.raises(TaskNotActiveError, match="not pinned"):
            engine.unpin("weather")
    with pytest.raises(BudgetError):
        wp.Engine(bundle, EngineConfig(room_for(bundle, "animal"), real_time=("animal", "weather")))
    with pytest.raises(UnknownTaskError, match="Did you mean 'animal'"):
        wp.Engine.from_pretrained(bundle.path, real_time=["animals"])


def test_a_real_time_task_cannot_be_unpinned(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig(real_time=("animal",))) as engine:
        with pytest.raises(TaskNotActiveError, match="not pinned"):
            engine.unpin("animal")
        engine.pin("animal")
        engine.unpin("animal")
        engine.evict()
        assert set(engine.blocks.resident()) == set(bundle.pages_of("animal"))


def test_kv_reserve_is_part_of_the_budget(bundle: Bundle) -> None:
    budget = room_for(bundle, "animal")
    with pytest.raises(BudgetError, match="for KV caches"):
        wp.Engine.from_pretrained(bundle.path, budget=budget - bundle.page_bytes, kv_reserve="1MiB")
    with wp.Engine.from_pretrained(bundle.path, budget=budget + 2**20, kv_reserve="1MiB") as engine:
        report = engine.report()
        assert report.memory.kv_reserve == 2**20
        assert report.memory.total <= report.budget
        assert report.slots == len(bundle.pages_of("animal"))


def test_repair_loads_just_the_pages_that_are_damaged(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    store = FaultyStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        module = engine.activate("animal")
        pages = engine.blocks.resident()[[0, -1]].tolist()
        for page in pages:
            engine._memory.arena.content(int(engine.blocks.page_table[page]))[3] ^= 1
        table, read = engine.blocks.page_table.copy(), store.pages_read
        assert engine.repair() == pages
        assert store.pages_read - read == 2
        assert (engine.blocks.page_table == table).all()
        assert engine.verify() == []
        assert torch.equal(logits(module), expected["animal"])
        engine._memory.arena.content(int(engine.blocks.page_table[pages[0]]))[3] ^= 1
        store.damaging = 1
        with pytest.raises(PageCorruptError):
            engine.repair()
        assert engine.verify() == pages[:1]


def test_closing_while_pages_are_loaded_tells_whoever_waits(bundle: Bundle) -> None:
    with hanging(bundle, io_threads=1) as (engine, store):
        store.hang()
        switching = InThread(lambda: engine.activate("animal"))
        store.wait_for_a_read()
        closing = InThread(engine.close)
        with pytest.raises(EngineClosedError):
            switching.result()
        store.resume()
        closing.result()
        with pytest.raises(EngineClosedError):
            engine.repair()


def test_closing_while_all_reads_of_a_load_hang_tells_whoever_waits(bundle: Bundle) -> None:
    """No read is queued whose end would tell."""
    weather = len(bundle.pages_of("weather"))
    with hanging(bundle, io_threads=weather) as (engine, store):
        store.hang()
        with engine.task("weather", wait=False) as module:
            store.wait_for_reads(weather)
            switching, running = InThread(lambda: engine.activate("weather")), InThread(lambda: logits(module))
            for waiting in (switching, running):
                waiting.join(0.1)
                assert waiting.is_alive()
            closing = InThread(engine.close)
            with pytest.raises(EngineClosedError):
                switching.result()
            with pytest.raises(SwitchFailedError, match="the engine was closed"):
                running.result()
            store.resume()
            closing.result()
    assert not engine.blocks.loading


def test_closing_tells_whoever_waits_for_the_slot_of_a_read_that_hangs(bundle: Bundle) -> None:
    small, large, only = by_size(bundle)
    with hanging(bundle, budget=room_for(bundle, large), io_threads=1) as (engine, store):
        store.hang(only)
        with engine.task(small, wait=False):
            store.wait_for_a_read(only)
        switching = InThread(lambda: engine.activate(large))
        switching.join(0.1)
        assert switching.is_alive()
        closing = InThread(engine.close)
        with pytest.raises(EngineClosedError):
            switching.result()
        store.resume()
        closing.result()


def test_no_thread_and_no_descriptor_outlives_an_engine(bundle: Bundle) -> None:
    def in_use() -> tuple[int, int]:
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("weightpager")]
        return len(threads), len(os.listdir("/proc/self/fd"))

    wp.Engine(bundle, EngineConfig()).close()
    before = in_use()
    for _ in range(5):
        with wp.Engine(bundle, EngineConfig()) as engine:
            engine.activate("animal")
    wp.Engine(bundle, EngineConfig())  # nobody keeps it
    assert in_use() == before


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_told_to_open_its_own(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig()) as engine:
        engine.activate("animal")
        child = os.fork()
        if child == 0:
            try:
                engine.activate("weather")
            except EngineClosedError as error:
                os._exit(0 if "forked" in str(error) else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        engine.activate("weather")


def test_a_working_set_that_does_not_fit_is_measured_and_said_once(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    budget = max(room_for(bundle, *three) for three in combinations(TASKS, 3))
    with (
        caplog.at_level(logging.WARNING, "weightpager"),
        wp.Engine.from_pretrained(bundle.path, budget=budget) as engine,
    ):
        for task in TASKS * 3:
            engine.activate(task)
        report = engine.report()
        assert report.working_set_pages == len(bundle.pages) > report.slots
        assert report.reloaded_pages > 0
    enough = room_for(bundle, *TASKS)
    assert [record.message for record in caplog.records if "switches load again" in record.message] == [
        f"the tasks in use need {len(bundle.pages)} pages and the arena holds {report.slots}: switches load again what "
        f"others have evicted; a budget of {enough} bytes ({format_enough(enough)}) would hold them all"
    ]


def test_what_is_kept_in_memory_belongs_to_the_working_set(bundle: Bundle) -> None:
    with wp.Engine.from_pretrained(bundle.path, real_time=["number"]) as engine:
        engine.pin("colour")
        engine.activate("animal")
        needed = np.concatenate([bundle.pages_of(task) for task in ("number", "colour", "animal")])
        assert engine.report().working_set_pages == len(np.unique(needed))


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [False, True], ids=["", "ahead"])
def test_many_threads_share_an_engine(bundle: Bundle, expected: dict[str, torch.Tensor], ahead: bool) -> None:
    """Also outside of CI, for longer:

    WEIGHTPAGER_STRESS_SECONDS=300 pytest tests/engine/switching/test_loading.py -k many
    """
    end = time.monotonic() + float(os.environ.get("WEIGHTPAGER_STRESS_SECONDS", "3"))
    budget = max(room_for(bundle, a, b) for a in TASKS for b in TASKS)
    threads = 32
    done = [0] * threads

    def work(engine: wp.Engine, number: int) -> None:
        random = np.random.default_rng(number)
        while time.monotonic() < end:
            task = TASKS[random.integers(len(TASKS))]
            kind = random.integers(12)
            try:
                if kind == 0:
                    engine.evict()
                elif kind == 1:
                    engine.set_budget(budget + int(random.integers(8)) * bundle.page_bytes)
                elif kind == 2:
                    engine.pin(task)
                    engine.unpin(task)
                elif kind == 3:
                    assert engine.verify() == []
                else:
                    with engine.task(task, wait=bool(random.integers(2)), timeout=60) as module:
                        assert torch.equal(logits(module), expected[task])
                done[number] += 1
            except BudgetError:
                continue  # a pin, or a budget that is smaller than what is in use

    def planner(visits: Sequence[Visit]) -> Mapping[str, float]:
        return {TASKS[len(visits) % len(TASKS)]: 1.0}

    with wp.Engine.from_pretrained(bundle.path, budget=budget, prefetch=ahead and planner) as engine:
        for worker in [InThread(lambda number=number: work(engine, number)) for number in range(threads)]:
            worker.join(600)
            worker.result()
        if ahead:
            assert engine._prefetching.prefetcher._thread.is_alive()
            engine._prefetching.prefetcher.close()
        settle(engine)
        assert engine.report().active == ()
    assert min(done) > 0

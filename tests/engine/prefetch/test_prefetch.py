"""Prefetching: what it brings, and that it never stands in the way of a switch, whatever fails."""

from __future__ import annotations

import gc
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import weightpager as wp
from encoder_tasks import TASKS, logits, room_for
from engines import InThread, check_pages
from faults import FaultyStore, HangingStore
from waiting import until
from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect
from weightpager.config import EngineConfig, format_enough
from weightpager.engine.prefetching import Prefetching, new_arenas
from weightpager.engine.report import PrefetchReport
from weightpager.errors import BudgetError, ConfigError, EngineClosedError, StoreTimeoutError, UnknownTaskError
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.pages import NO_PAGES
from weightpager.runtime.prefetch.prefetcher import PrefetchPolicy
from weightpager.store import LocalStore
from weightpager.trace_file import Visit


def resident(engine: wp.Engine, task: str) -> bool:
    return engine.blocks.is_resident(engine.bundle.task_numbers[task])


def prefetched(engine: wp.Engine) -> PrefetchReport:
    report = engine.report().prefetch
    assert report is not None
    return report


def always(task: str) -> Callable[[Sequence[Visit]], Mapping[str, float]]:
    return lambda visits: {task: 1.0}


@pytest.fixture
def threads() -> Callable[[], list[str]]:
    """Names of weightpager's threads that began in this test: servers that other tests share keep theirs to the end."""
    before = set(threading.enumerate())

    def began() -> list[str]:
        names = [thread.name for thread in threading.enumerate() if thread not in before]
        return [name for name in names if name.startswith("weightpager")]

    return began


def test_what_a_planner_names_is_there_before_it_is_asked_for(
    bundle: Bundle, expected: dict[str, torch.Tensor]
) -> None:
    config = EngineConfig(room_for(bundle, "animal", "number"), prefetch=always("number"))
    with wp.Engine(bundle, config) as engine:
        engine.activate("animal")
        until(lambda: resident(engine, "number"))
        assert torch.equal(logits(engine.activate("number")), expected["number"])
        until(lambda: prefetched(engine).hit_rate == 1.0)  # it is told later
        report, found = engine.report(), prefetched(engine)
    assert report.switches[-1].pages == 0
    assert found.pages.hits > 0
    assert found.pages.late == found.pages.wasted == 0
    assert found.pages.misses == len(bundle.pages_of("animal"))


def test_habits_are_learnt(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    config = EngineConfig(room_for(bundle, "animal", "number", "weather"), prefetch=True)
    with wp.Engine(bundle, config) as engine:
        for _ in range(6):
            for task in ("animal", "number", "weather", "colour"):
                engine.activate(task)
                time.sleep(0.01)
        engine.activate("animal")
        until(lambda: resident(engine, "number"))
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task)), expected[task])
        assert engine.verify() == []


def test_the_task_that_ran_last_keeps_its_pages_though_it_was_left(bundle: Bundle) -> None:
    config = EngineConfig(room_for(bundle, "animal"), prefetch=always("colour"))
    with wp.Engine(bundle, config) as engine:
        for _ in range(3):
            with engine.task("animal"):
                pass
            time.sleep(0.1)
        assert resident(engine, "animal")
        assert [switch.pages for switch in engine.report().switches[1:]] == [0, 0]


def test_without_it_nothing_is_loaded_ahead(bundle: Bundle, threads: Callable[[], list[str]]) -> None:
    with wp.Engine(bundle, EngineConfig()) as engine:
        engine.activate("animal")
        assert engine.report().prefetch is None
        assert "weightpager-prefetcher" not in threads()


def test_the_thread_ends_with_the_engine(bundle: Bundle, threads: Callable[[], list[str]]) -> None:
    with wp.Engine(bundle, EngineConfig(prefetch=True)) as engine:
        engine.activate("animal")
        assert "weightpager-prefetcher" in threads()
    assert not threads()


def nonsense(answer: object) -> Callable[[Sequence[Visit]], Mapping[str, float]]:
    def planner(visits: Sequence[Visit]) -> Mapping[str, float]:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    return planner


@pytest.mark.parametrize(
    "answer",
    [RuntimeError("the map is gone"), None, 7, ["number"], {"nobody": 1.0}, {"number": float("nan")}, {"number": -1}],
    ids=str,
)
def test_a_planner_that_fails_is_no_matter_for_switches(
    bundle: Bundle, expected: dict[str, torch.Tensor], answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    config = EngineConfig(room_for(bundle, "animal", "number"), prefetch=nonsense(answer))
    with caplog.at_level(logging.WARNING), wp.Engine(bundle, config) as engine:
        for task in (*TASKS, *TASKS):
            assert torch.equal(logits(engine.activate(task)), expected[task])
        until(lambda: "planner" in caplog.text)
    assert caplog.text.count("planner's answer") == 1


def test_a_planner_that_hangs_is_no_matter_for_switches(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hang(visits: Sequence[Visit]) -> Mapping[str, float]:
        asked.set()
        answer.wait(60)
        return {}

    with wp.Engine(bundle, EngineConfig(room_for(bundle, "animal", "number"), prefetch=hang)) as engine:
        engine.activate("animal")
        assert asked.wait(60)
        for task in (*TASKS, *TASKS):
            assert torch.equal(logits(engine.activate(task)), expected[task])
        answer.set()


def test_a_planner_that_ends_its_thread_is_no_matter_for_switches(
    bundle: Bundle, expected: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    def leave(visits: Sequence[Visit]) -> Mapping[str, float]:
        raise SystemExit

    config = EngineConfig(room_for(bundle, "animal", "number"), prefetch=leave)
    with caplog.at_level(logging.WARNING), wp.Engine(bundle, config) as engine:
        engine.activate("animal")
        until(lambda: not prefetched(engine).pays)
        for task in TASKS:
            assert torch.equal(logits(engine.activate(task)), expected[task])
    assert "prefetching has ended" in caplog.text


def test_a_planner_may_close_the_engine(bundle: Bundle, threads: Callable[[], list[str]]) -> None:
    def close(visits: Sequence[Visit]) -> Mapping[str, float]:
        engine.close()
        return {}

    engine = wp.Engine(bundle, EngineConfig(prefetch=close))
    engine.activate("animal")
    until(lambda: not threads())
    with pytest.raises(EngineClosedError):
        engine.activate("number")


def test_a_budget_is_known_to_loading_ahead_before_the_next_one_comes(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig(prefetch=True)) as engine:
        slots = engine.report().slots
        with engine._prefetching.prefetcher._changed:  # type: ignore[union-attr]
            first = threading.Thread(target=engine.set_budget, args=(room_for(bundle, "animal"),))
            first.start()
            until(lambda: engine.blocks.slots < slots)
            second = threading.Thread(target=engine.set_budget, args=(room_for(bundle, *TASKS),))
            second.start()
            second.join(0.2)
            assert engine.blocks.slots < slots
        first.join(60)
        second.join(60)
        assert engine.blocks.slots == slots


@pytest.mark.parametrize("learnt", [False, True])
def test_a_switch_while_a_budget_is_made_known_is_not_forgotten(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, learnt: bool
) -> None:
    """What prefetching goes by is learnt from the whole history, which takes a while where that is long."""
    with wp.Engine(bundle, EngineConfig(prefetch=True)) as engine:
        engine.activate("animal")
        number = bundle.task_numbers["number"]
        made: list[PrefetchPolicy] = []
        policy = Prefetching.policy

        def slow(prefetching: Prefetching) -> PrefetchPolicy:
            made.append(policy(prefetching))
            engine.activate("number")
            if learnt:
                until(lambda: engine._prefetching.prefetcher._policy.expected.current == number)  # type: ignore[union-attr]
            return made[0]

        monkeypatch.setattr(Prefetching, "policy", slow)
        engine.set_budget(room_for(bundle, *TASKS))
        until(lambda: made[0].expected.current == number)


def test_a_planner_is_told_of_a_current_task_that_is_asked_for_again(bundle: Bundle) -> None:
    told: list[list[str]] = []

    def planner(visits: Sequence[Visit]) -> Mapping[str, float]:
        told.append([visit.task for visit in visits])
        return {}

    with wp.Engine(bundle, EngineConfig(prefetch=planner)) as engine:
        engine.activate("animal")
        with engine.task("number"):
            pass
        engine.activate("animal")
        until(lambda: told[-1:] == [["animal", "number", "animal"]])
        assert [visit.task for visit in engine.monitor.visits()] == told[-1]


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_kept_in_memory_was_not_asked_for(bundle: Bundle, ahead: bool) -> None:
    with wp.Engine(bundle, EngineConfig(real_time=("number", "colour"), prefetch=ahead)) as engine:
        assert engine.monitor.current is None
        assert engine.forecast() is None
        engine.activate("animal")
        engine.pin("weather")
        assert engine.last_switch is not None
        assert engine.last_switch.to_task == "weather"
        assert [visit.task for visit in engine.monitor.visits()] == ["animal"]
        assert engine.monitor.requests == {"animal": 1}
        with engine.task("weather"):
            assert [visit.task for visit in engine.monitor.visits()] == ["animal", "weather"]


@pytest.mark.slow
def test_what_it_goes_by_is_not_lost_behind_many_switches(bundle: Bundle) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hang(visits: Sequence[Visit]) -> Mapping[str, float]:
        asked.set()
        assert answer.wait(60)
        return {"number": 1.0}

    with wp.Engine(bundle, EngineConfig(prefetch=hang)) as engine:
        engine.activate("animal")
        assert asked.wait(60)
        engine.set_budget(room_for(bundle, "animal", "number"))
        told = engine._prefetching.prefetcher._newer  # type: ignore[union-attr]
        for _ in range(600):
            for task in ("weather", "animal"):
                engine.activate(task)
        answer.set()
        until(lambda: engine._prefetching.prefetcher._policy is told)  # type: ignore[union-attr]


def test_it_ends_with_an_engine_that_nobody_keeps(bundle: Bundle, threads: Callable[[], list[str]]) -> None:
    wp.Engine(bundle, EngineConfig(prefetch=always("number"))).activate("animal")
    gc.collect()
    until(lambda: not threads())


def test_a_prefetch_must_be_a_function(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="prefetch: expected True, False or a function, got str"):
        EngineConfig(prefetch="markov")  # type: ignore[arg-type]


def test_a_page_that_cannot_be_loaded_ahead_is_said_once_and_loaded_when_it_must(
    bundle: Bundle, expected: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyStore(LocalStore(bundle))
    only = np.setdiff1d(bundle.pages_of("number"), bundle.pages_of("animal"))
    config = EngineConfig(room_for(bundle, "animal", "number"), prefetch=always("number"))
    with caplog.at_level(logging.WARNING), wp.Engine(bundle, config, lambda _: store) as engine:
        store.bad = set(only.tolist())
        engine.activate("animal")
        until(lambda: "could not be prefetched" in caplog.text)
        until(lambda: not prefetched(engine).pays)
        store.bad = set()
        assert torch.equal(logits(engine.activate("number")), expected["number"])
        check_pages(engine)
    assert caplog.text.count("could not be prefetched") == 1


def test_a_switch_takes_the_slots_of_reads_that_have_not_begun(
    bundle: Bundle, expected: dict[str, torch.Tensor]
) -> None:
    """One page is being prefetched when the switch comes; it waits for that one, and the others are not read."""
    store = HangingStore(LocalStore(bundle))
    config = EngineConfig(room_for(bundle, "animal", "number"), io_threads=1, prefetch=always("number"))
    with wp.Engine(bundle, config, lambda _: store) as engine:
        engine.activate("animal")
        until(lambda: resident(engine, "number"))
        engine.evict()
        store.begun.clear()
        store.hang()
        engine.activate("animal")
        until(lambda: len(store.begun) == 1)
        done: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: done.append(logits(engine.activate("colour"))))
        thread.start()
        store.resume()
        thread.join(60)
        assert torch.equal(done[0], expected["colour"])
        check_pages(engine)


@contextmanager
def hanging_ahead(bundle: Bundle, read_timeout: float) -> Iterator[tuple[wp.Engine, HangingStore]]:
    """Room for "animal" and "number"; the first one runs, and the reads of two pages for the other one hang."""
    store = HangingStore(LocalStore(bundle))
    others = np.union1d(bundle.pages_of("animal"), bundle.pages_of("weather"))
    hung = np.setdiff1d(bundle.pages_of("number"), others).tolist()[:2]
    assert len(hung) == 2
    budget = room_for(bundle, "animal", "number")
    config = EngineConfig(budget, io_threads=3, prefetch=always("number"), read_timeout=read_timeout)
    with wp.Engine(bundle, config, lambda _: store) as engine:
        store.hang(hung)
        engine.activate("animal")
        for page in hung:
            store.wait_for_a_read([page])
        try:
            yield engine, store
        finally:
            store.resume()


def test_a_read_ahead_that_hangs_does_not_keep_a_switch_from_the_old_tasks_memory(
    bundle: Bundle, expected: dict[str, torch.Tensor]
) -> None:
    with hanging_ahead(bundle, read_timeout=1) as (engine, _):
        assert torch.equal(logits(engine.activate("weather")), expected["weather"])
        assert engine.blocks.loading == 2


@pytest.mark.slow
def test_a_read_ahead_that_hangs_fails_only_who_needs_its_memory(
    bundle: Bundle, expected: dict[str, torch.Tensor]
) -> None:
    least = room_for(bundle, "animal")
    with hanging_ahead(bundle, read_timeout=1) as (engine, store):
        ahead = np.setdiff1d(bundle.pages_of("number"), bundle.pages_of("animal"))
        assert engine.evict() <= len(ahead) - 2
        engine.set_budget(room_for(bundle, *TASKS))
        engine.set_budget(least + 2 * bundle.page_bytes)
        with pytest.raises(StoreTimeoutError, match="whose memory is needed"):
            engine.set_budget(least)
        store.resume()
        engine.set_budget(least)
        assert torch.equal(logits(engine.activate("animal")), expected["animal"])
        check_pages(engine)


def test_a_budget_that_shrinks_takes_what_was_loaded_ahead(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    with wp.Engine(bundle, EngineConfig(prefetch=always("number"))) as engine:
        engine.activate("animal")
        until(lambda: resident(engine, "number"))
        engine.set_budget(room_for(bundle, "animal"))
        assert engine.report().memory.total <= engine.report().budget
        assert len(engine.blocks.resident()) <= engine.report().slots
        for task in TASKS[:2]:
            with engine.task("animal"):
                assert torch.equal(logits(engine.activate("animal")), expected["animal"])
            engine.deactivate()
            assert task in engine.bundle.tasks


def test_it_goes_on_when_the_bundle_changes(
    assistant_bundle: Path, tmp_path: Path, expected: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "changing.bundle"
    shutil.copytree(assistant_bundle, path)
    with wp.Engine.from_pretrained(path, prefetch=True) as engine:
        engine.activate("animal")
        engine.activate("number")
        collect(path, ["weather"])
        assert engine.reload().removed == ("weather",)
        for task in ("animal", "number", "colour", "animal"):
            assert torch.equal(logits(engine.activate(task)), expected[task])
            time.sleep(0.05)
        until(lambda: resident(engine, "colour"))


def test_habits_are_known_again_after_a_restart(bundle: Bundle, tmp_path: Path) -> None:
    history = tmp_path / "history"
    with wp.Engine.from_pretrained(bundle.path, history=history) as engine:
        for task in TASKS * 4:
            engine.activate(task)
    config = EngineConfig(room_for(bundle, *TASKS), prefetch=True, history=history)
    with wp.Engine(bundle, config) as engine:
        assert len(engine.monitor.visits()) == 16
        engine.activate("animal")
        until(lambda: resident(engine, "weather"))
        engine.activate("weather")
        until(lambda: prefetched(engine).hit_rate == 1.0)


def test_two_engines_do_not_share_a_history(bundle: Bundle, tmp_path: Path) -> None:
    with wp.Engine.from_pretrained(bundle.path, history=tmp_path / "history") as engine:
        engine.activate("animal")
        with pytest.raises(ConfigError, match="history"):
            wp.Engine.from_pretrained(bundle.path, history=tmp_path / "history")


def test_a_named_task_is_loaded_ahead(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    with wp.Engine(bundle, EngineConfig(room_for(bundle, "animal", "number"))) as engine:
        engine.activate("animal")
        lacking = np.setdiff1d(bundle.pages_of("number"), bundle.pages_of("animal"))
        assert engine.prefetch("number") == len(lacking)
        until(lambda: resident(engine, "number"))
        assert engine.prefetch("number") == 0
        assert engine.report().active == ("animal",)
        assert torch.equal(logits(engine.activate("number")), expected["number"])
        assert engine.report().switches[-1].pages == 0


def test_several_named_tasks_are_loaded_ahead(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig()) as engine:
        for task in TASKS:
            engine.prefetch(task)
        until(lambda: engine.resident_tasks == set(TASKS))


def test_a_named_task_takes_what_nobody_uses_and_nothing_else(
    bundle: Bundle, expected: dict[str, torch.Tensor]
) -> None:
    with wp.Engine(bundle, EngineConfig(room_for(bundle, "animal", "number"))) as engine:
        engine.activate("number")
        module = engine.activate("animal")
        engine.prefetch("weather")
        until(lambda: resident(engine, "weather"))
        assert resident(engine, "animal")
        assert not resident(engine, "number")
        assert torch.equal(logits(module), expected["animal"])


def test_a_named_task_takes_the_place_of_one_that_was_named_before_and_not_begun(bundle: Bundle) -> None:
    """Else whoever must switch would wait until all of that has been read, to go at once."""
    store = HangingStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(room_for(bundle, "animal", "number"), io_threads=1), lambda _: store) as engine:
        engine.activate("animal")
        store.begun.clear()
        store.hang()
        engine.prefetch("number")
        store.wait_for_a_read()
        first = set(store.begun)
        naming = InThread(lambda: engine.prefetch("weather"))
        naming.join(0.2)
        store.resume()
        assert naming.result()
        until(lambda: resident(engine, "weather"))
        assert set(store.begun) <= first | set(bundle.pages_of("weather").tolist())
        check_pages(engine)


def test_a_named_task_that_has_no_room_changes_nothing(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig(room_for(bundle, "number"))) as engine:
        engine.activate("number")
        before = engine.blocks.page_table.copy()
        smallest = format_enough(room_for(bundle, "animal", "number"))
        with pytest.raises(BudgetError, match=f"'animal' beside the tasks in use.*{re.escape(smallest)}"):
            engine.prefetch("animal")
        assert (engine.blocks.page_table == before).all()
        engine.deactivate()
        assert engine.prefetch("animal") > 0
        with pytest.raises(UnknownTaskError):
            engine.prefetch("aminal")
    with pytest.raises(EngineClosedError):
        engine.prefetch("animal")


def test_a_named_task_is_read_after_one_that_is_waited_for(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    store = HangingStore(LocalStore(bundle))
    with wp.Engine(bundle, EngineConfig(io_threads=1), lambda _: store) as engine:
        engine.activate("animal")
        store.begun.clear()
        store.hang()
        engine.prefetch("number")
        store.wait_for_a_read()
        (first,) = store.begun
        thread = threading.Thread(target=engine.activate, args=("colour",))
        thread.start()
        until(lambda: engine.blocks.is_held(bundle.task_numbers["colour"]))
        store.resume()
        thread.join(60)
        assert set(store.begun) <= {first, *bundle.pages_of("colour").tolist()}
        assert torch.equal(logits(engine.module("colour")), expected["colour"])
        check_pages(engine)


def test_a_named_task_that_cannot_be_loaded_is_said_in_the_log(
    bundle: Bundle, expected: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    store = FaultyStore(LocalStore(bundle))
    with caplog.at_level(logging.WARNING), wp.Engine(bundle, EngineConfig(), lambda _: store) as engine:
        engine.activate("animal")
        store.bad = set(np.setdiff1d(bundle.pages_of("number"), bundle.pages_of("animal")).tolist())
        engine.prefetch("number")
        until(lambda: not engine.blocks.loading)
        store.bad = set()
        assert torch.equal(logits(engine.activate("number")), expected["number"])
        check_pages(engine)
    assert caplog.text.count("could not be prefetched: a bad sector") == 1


def test_closing_drops_what_was_to_be_loaded_ahead(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    store = HangingStore(LocalStore(bundle))
    with caplog.at_level(logging.WARNING), wp.Engine(bundle, EngineConfig(io_threads=1), lambda _: store) as engine:
        store.hang()
        engine.prefetch("number")
        store.wait_for_a_read()
        threading.Timer(0.1, store.resume).start()
    assert len(store.begun) == 1
    assert not caplog.records


def test_prefetch_has_a_trial_where_no_task_uses_a_page() -> None:
    opened: Any = SimpleNamespace(
        residency=SimpleNamespace(blocks=BlockManager([NO_PAGES, NO_PAGES], 4, 2)),
        tasks={"a": SimpleNamespace(number=0), "b": SimpleNamespace(number=1)},
        bundle=SimpleNamespace(page_bytes=4096),
        reads=SimpleNamespace(span=lambda _: 1),
        reads_in_flight=8,
    )
    assert new_arenas(opened, ["a"])().has_room_for(0)


def test_the_trial_makes_as_many_reads_at_once_as_the_engine(bundle: Bundle) -> None:
    for reads in (3, 8):
        with wp.Engine(bundle, EngineConfig(prefetch=True, io_threads=reads)) as engine:
            trial = engine._prefetching.policy().targets[0].trial
            assert [arena._reads for arena in trial._arenas] == [reads, reads]

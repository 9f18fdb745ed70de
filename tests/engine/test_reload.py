"""A bundle changes while an engine has it open: tasks come, leave and change, the others go on."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import weightpager as wp
from encoder_tasks import logits
from engines import check_pages
from faults import FaultyStore
from weightpager.bundle import Bundle, PageIndex
from weightpager.bundle.footprint import footprint
from weightpager.bundle.garbage import collect
from weightpager.compiler.repack import repack
from weightpager.config import EngineConfig
from weightpager.engine.bundle_change import BundleChange
from weightpager.engine.open_task import BlockTables
from weightpager.engine.page_numbers import PageNumbers
from weightpager.errors import BudgetError, BundleError, BusyError, TaskNotActiveError, UnknownTaskError
from weightpager.runtime.paging.state import SwitchRequest
from weightpager.store import JoinedStore, LocalStore

OLD, NEW = ("animal", "weather"), ("number", "colour")


def fresh(path: Path) -> dict[str, torch.Tensor]:
    with wp.Engine.from_pretrained(path) as engine:
        return {task: logits(engine.activate(task)) for task in engine.bundle.tasks}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A task file of the tiny assistant's four tasks."""
    return tiny.assistant(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def content(whole: dict[str, Any]) -> dict[str, Any]:
    """Of a task file with two of them."""
    return whole | {"tasks": {name: whole["tasks"][name] for name in OLD}}


@pytest.fixture(scope="module")
def compiled(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wp.compile(content, out=tmp_path_factory.mktemp("compiled") / "a.bundle").path


@pytest.fixture
def path(tmp_path: Path, whole: dict[str, Any], compiled: Path) -> Path:
    (tmp_path / "whole.json").write_text(json.dumps(whole))
    return Path(shutil.copytree(compiled, tmp_path / "a.bundle"))


def grow(path: Path, *names: str, **settings: float) -> None:
    whole = json.loads((path.parent / "whole.json").read_text())
    fields = {key: whole[key] for key in ("model", "training", "calibration") if key in whole}
    more = fields | settings | {"tasks": {name: whole["tasks"][name] for name in names or NEW}}
    wp.compile(more, base=path, out=path, force=True)


def check(engine: wp.Engine, expected: dict[str, torch.Tensor]) -> None:
    for task, wanted in expected.items():
        assert torch.equal(logits(engine.activate(task)), wanted), task
    check_pages(engine)


@pytest.mark.slow
def test_tasks_that_were_added_run_beside_those_that_go_on(path: Path) -> None:
    before = fresh(path)
    with wp.Engine.from_pretrained(path) as engine, engine.task("animal") as animal:
        read = engine.report().bytes_read
        grow(path)
        assert engine.reload() == BundleChange(NEW, (), ())
        assert torch.equal(logits(animal), before["animal"])
        assert engine.activate("animal") is animal
        assert engine.report().bytes_read == read
        check(engine, before | fresh(path))
        assert engine.report().slots == len(engine.bundle.pages)
        assert engine.reload() == BundleChange((), (), ())
        check(engine, fresh(path))


@pytest.mark.slow
def test_a_task_that_was_removed_is_unknown_and_its_module_refuses(path: Path) -> None:
    grow(path)
    expected = fresh(path)
    with wp.Engine.from_pretrained(path) as engine:
        weather = engine.activate("weather")
        collect(path, ["weather"])
        with pytest.raises(BusyError, match="found in use: weather"):
            engine.reload()
        assert torch.equal(logits(weather), expected["weather"])
        engine.activate("animal")
        assert engine.reload() == BundleChange((), ("weather",), ())
        with pytest.raises(UnknownTaskError):
            engine.activate("weather")
        with pytest.raises(TaskNotActiveError):
            logits(weather)
        del expected["weather"]
        check(engine, expected)
        assert fresh(path).keys() == expected.keys()


@pytest.mark.slow
def test_a_task_that_is_leaving_is_not_called_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may look while the budget is of the new bundle, and the task of the old one."""
    grow(path, "number", sparsity=0.0)
    with wp.Engine.from_pretrained(path) as engine:
        take_over, pages = engine._open._take_over, len(engine.bundle.pages_of("number"))

        def looked_at(bundle: Bundle, change: BundleChange) -> None:
            assert engine._memory.slots_beside(0) < pages
            engine.check_fits("number")
            take_over(bundle, change)

        monkeypatch.setattr(engine._open, "_take_over", looked_at)
        collect(path, ["number"])
        engine.reload()
        with pytest.raises(UnknownTaskError):
            engine.check_fits("number")


@pytest.mark.slow
def test_pages_are_evicted_after_any_task_has_left(path: Path) -> None:
    grow(path)
    bundle = Bundle.open(path)
    most = max(len(bundle.pages_of(task)) for task in bundle.tasks)
    with wp.Engine.from_pretrained(path, budget=footprint(bundle).total + most * bundle.page_bytes) as engine:
        for task in bundle.tasks:
            engine.activate(task)
        engine.deactivate()
        last = list(bundle.tasks)[-1]
        collect(path, [last])
        assert engine.reload().removed == (last,)
        check(engine, fresh(path))


@pytest.mark.slow
def test_a_task_that_was_compiled_anew_gets_a_new_module(path: Path) -> None:
    grow(path)
    with wp.Engine.from_pretrained(path) as engine:
        old = engine.activate("number")
        engine.activate("colour")
        collect(path, ["number"])
        grow(path, "number", sparsity=0.2)
        assert engine.reload() == BundleChange((), (), ("number",))
        check(engine, fresh(path))
        assert engine.activate("number") is not old


@pytest.mark.slow
def test_a_bundle_that_was_packed_again_is_taken_over(path: Path, tmp_path: Path) -> None:
    grow(path)
    expected = fresh(path)
    with wp.Engine.from_pretrained(path) as engine:
        engine.activate("animal")
        size = Bundle.open(path).page_bytes
        repack(path, path, page=size, force=True)
        with pytest.raises(BusyError):
            engine.reload()
        engine.deactivate()
        change = engine.reload()
        assert change.added == change.removed == ()
        assert "animal" in change.changed
        check(engine, expected)


def test_pages_of_another_size_are_refused_and_it_says_how_to_keep_them(path: Path) -> None:
    with wp.Engine.from_pretrained(path) as engine:
        repack(path, path, page=8192, force=True)
        with pytest.raises(BundleError, match=r"of 4KiB, .* found 8KiB; 'weightpager repack --page 4KiB'"):
            engine.reload()
        repack(path, path, page=4096, force=True)
        assert set(engine.reload().changed) <= set(OLD)


@pytest.mark.slow
def test_another_model_is_refused_and_nothing_changes(path: Path, content: dict[str, Any], tmp_path: Path) -> None:
    expected = fresh(path)
    with wp.Engine.from_pretrained(path) as engine:
        engine.activate("animal")
        wp.compile(content | {"model": str(tiny.bert(tmp_path / "other", seed=5))}, out=path, force=True)
        with pytest.raises(BundleError, match="found another model or resident parameters"):
            engine.reload()
        (path / "manifest.json").write_text("{}")
        with pytest.raises(BundleError):
            engine.reload()
        check(engine, expected)


@pytest.mark.slow
def test_a_bundle_that_leaves_too_little_room_changes_nothing(path: Path) -> None:
    bundle = Bundle.open(path)
    budget = footprint(bundle).total + len(bundle.pages_of("animal")) * bundle.page_bytes
    expected = {"animal": fresh(path)["animal"]}
    with wp.Engine.from_pretrained(path, budget=budget) as engine:
        module = engine.activate("animal")
        grow(path)
        with pytest.raises(BudgetError):
            engine.reload()
        assert engine.report().budget == budget
        assert torch.equal(logits(module), expected["animal"])
        with pytest.raises(UnknownTaskError):
            engine.activate("number")
        engine.set_budget(4 * budget)
        assert engine.reload().added == NEW
        check(engine, fresh(path))


def test_a_reload_without_memory_for_the_tables_that_stay_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise MemoryError

    expected = fresh(path)
    with wp.Engine.from_pretrained(path) as engine:
        check(engine, expected)
        engine.deactivate()
        collect(path, ["weather"])
        with monkeypatch.context() as patch:
            patch.setattr(BlockTables, "follow", refused)
            with pytest.raises(MemoryError):
                engine.reload()
        check(engine, expected)
        engine.deactivate()
        assert engine.reload() == BundleChange((), ("weather",), ())
        check(engine, fresh(path))


@pytest.mark.slow
def test_other_threads_go_on_while_a_bundle_is_reloaded(path: Path) -> None:
    expected = fresh(path)
    stop = threading.Event()
    wrong: list[str] = []

    def use(task: str) -> Callable[[], None]:
        def work() -> None:
            while not stop.is_set():
                with engine.task(task, timeout=30) as module:
                    if not torch.equal(logits(module), expected[task]):
                        wrong.append(task)

        return work

    with wp.Engine.from_pretrained(path) as engine:
        threads = [threading.Thread(target=use(task)) for task in OLD]
        for thread in threads:
            thread.start()
        try:
            grow(path)
            assert engine.reload().added == NEW
            collect(path, ["number"])
            assert engine.reload().removed == ("number",)
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        check(engine, expected)
    assert wrong == []


def test_a_task_that_leaves_between_asking_and_entering_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fresh(path)
    with wp.Engine.from_pretrained(path) as engine:
        hold = engine._residency.hold

        def reloaded_first(request: SwitchRequest) -> Any:
            monkeypatch.undo()
            collect(path, ["weather"])
            assert engine.reload().removed == ("weather",)
            return hold(request)

        monkeypatch.setattr(engine._residency, "hold", reloaded_first)
        with pytest.raises(BusyError, match="'weather' has just left the bundle"), engine.task("weather"):
            pass
        with pytest.raises(UnknownTaskError), engine.task("weather"):
            pass
        check(engine, {"animal": expected["animal"]})


def test_reloading_for_nothing_keeps_no_file_open(path: Path) -> None:
    with wp.Engine.from_pretrained(path) as engine:
        engine.reload()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            engine.reload()
        assert len(os.listdir("/proc/self/fd")) == before
        check(engine, fresh(path))


def test_a_reload_without_new_pages_opens_no_store_whose_end_could_fail(path: Path) -> None:
    class Stuck(FaultyStore):
        def close(self) -> None:
            super().close()
            raise OSError("the cable was pulled")

    kinds = iter([FaultyStore, Stuck])
    with wp.Engine(Bundle.open(path), EngineConfig(), lambda bundle: next(kinds)(LocalStore(bundle))) as engine:
        collect(path, ["weather"])
        assert engine.reload() == BundleChange((), ("weather",), ())
        with pytest.raises(UnknownTaskError):
            engine.activate("weather")
        check(engine, fresh(path))


@pytest.mark.slow
def test_a_reload_opens_its_store_as_the_engine_did(path: Path) -> None:
    opened: list[FaultyStore] = []

    def open_store(bundle: Bundle) -> FaultyStore:
        opened.append(FaultyStore(LocalStore(bundle)))
        return opened[-1]

    with wp.Engine(Bundle.open(path), EngineConfig(), open_store) as engine:
        check(engine, fresh(path))
        grow(path)
        assert engine.reload().added == NEW
        check(engine, fresh(path))
        read = [store.pages_read for store in opened]
        assert len(read) == 2
        assert read[1] > 0
        assert sum(read) * engine.bundle.page_bytes == engine.report().bytes_read


@pytest.mark.slow
def test_a_task_in_use_is_to_blame_not_the_budget(path: Path) -> None:
    with wp.Engine.from_pretrained(path) as engine:
        grow(path)
        engine.reload()
        for task in ("animal", "weather", "number"):
            engine.pin(task)
        collect(path, ["number", "colour"])
        with pytest.raises(BusyError, match="found in use: number"):
            engine.reload()


def test_pages_that_are_equal_keep_numbers_of_their_own() -> None:
    """Such as those of two layers that hold nothing but zeros."""
    ids = np.zeros((4, 32), np.uint8)
    ids[3] = 7
    layers, signatures = np.array([0, 0, 1, 1], np.int32), np.ones(4, np.uint64)
    old = SimpleNamespace(path="old", pages=PageIndex(ids, layers, signatures))
    one_more = PageIndex(ids[[3, 0, 0, 0, 0]], np.array([1, 0, 0, 0, 1], np.int32), np.ones(5, np.uint64))
    new = SimpleNamespace(path="new", pages=one_more)
    numbers = PageNumbers(old, JoinedStore(), 100)  # type: ignore[arg-type]
    assert numbers.of(old).tolist() == [0, 1, 2, 3]  # type: ignore[arg-type]
    assert numbers.of(new).tolist() == [3, 0, 1, 4, 2]  # type: ignore[arg-type]

"""Who waits for whom: for room, for a switch, for a module to be built, for pages of a task that was left."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.utils import logging as transformers_logging

import weightpager as wp
from encoder_tasks import TASKS, logits, room_for, room_in_use
from engines import InThread, hanging, settle
from weightpager.answers.predict import predict
from weightpager.backends.task_parts import TaskParts
from weightpager.backends.torch import task_module
from weightpager.backends.torch.architecture import empty_module, quiet_transformers, read_config
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import private_file
from weightpager.config import EngineConfig
from weightpager.errors import BudgetError, BundleError, BusyError, ConfigError, EngineClosedError, TaskNotActiveError
from weightpager.runtime.paging.page_waits import PendingPages
from weightpager.runtime.paging.residency import TaskGate

TEXTS = ["red cat"]


def by_pages(bundle: Bundle) -> list[str]:
    """The tasks, that with the fewest pages first."""
    return sorted(TASKS, key=lambda task: len(bundle.pages_of(task)))


def waits(thread: InThread) -> None:
    thread.join(0.1)
    assert thread.is_alive()


@contextmanager
def computing(engine: wp.Engine, task: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[InThread]:
    """Another thread's prediction, which computes until the block ends."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(model: Any, reader: Any, entry: Any, *rest: Any, **options: Any) -> Any:
        if entry.name == task:
            begun.set()
            assert go_on.wait(20)
        return predict(model, reader, entry, *rest, **options)

    monkeypatch.setattr("weightpager.engine.engine.predict", slow)
    prediction = InThread(lambda: engine.predict(task, TEXTS))
    assert begun.wait(20)
    try:
        yield prediction
    finally:
        go_on.set()


def test_a_budget_that_grows_makes_room_for_who_waits_for_it(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    small, *_, large = by_pages(bundle)
    with wp.Engine.from_pretrained(bundle.path, budget=room_for(bundle, large)) as engine:

        def other() -> torch.Tensor:
            with engine.task(large, timeout=60) as module:
                return logits(module)

        with engine.task(small) as module:
            waiting = InThread(other)
            waits(waiting)
            engine.set_budget(room_in_use(bundle, small, large))
            assert torch.equal(waiting.result(), expected[large])
            assert torch.equal(logits(module), expected[small])


def test_others_switch_while_a_thread_waits_for_room(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    first, second, *_, large = by_pages(bundle)
    budget = max(room_in_use(bundle, first, second), room_for(bundle, large))
    assert budget < room_in_use(bundle, first, large)
    with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:

        def other() -> torch.Tensor:
            with engine.task(large, timeout=60) as module:
                return logits(module)

        with engine.task(first):
            waiting = InThread(other)
            waits(waiting)
            with engine.task(second, timeout=20) as module:
                assert torch.equal(logits(module), expected[second])
            waits(waiting)
        assert torch.equal(waiting.result(), expected[large])
        settle(engine)


def test_closing_ends_waiting_for_room(bundle: Bundle) -> None:
    small, *_, large = by_pages(bundle)
    engine = wp.Engine.from_pretrained(bundle.path, budget=room_for(bundle, large))
    with engine.task(small):
        waiting = InThread(lambda: engine.activate(large, timeout=60))
        waits(waiting)
        engine.close()
        with pytest.raises(EngineClosedError):
            waiting.result()


def test_a_real_time_task_answers_while_another_thread_has_transformers(bundle: Bundle) -> None:
    """Whoever builds a module, or reads another model, may have its lock for seconds."""
    always = TASKS[0]
    with wp.Engine.from_pretrained(bundle.path, real_time=[always], backend="torch") as engine:
        expected, vectors = engine.predict(always, TEXTS), engine.embed(always, TEXTS)
        with quiet_transformers():
            assert InThread(lambda: engine.predict(always, TEXTS)).result() == expected
            assert np.array_equal(InThread(lambda: engine.embed(always, TEXTS)).result(), vectors)


def test_a_real_time_task_asked_for_while_another_is_given_up_does_not_wait_for_the_load(
    bundle: Bundle, expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    always, old, new = max(
        permutations(TASKS, 3),
        key=lambda tasks: (
            room_in_use(bundle, *tasks) - max(room_in_use(bundle, *tasks[:2]), room_in_use(bundle, *tasks[::2]))
        ),
    )
    budget = max(room_in_use(bundle, always, old), room_in_use(bundle, always, new))
    assert budget < room_in_use(bundle, always, old, new)
    with hanging(bundle, budget=budget, io_threads=1, real_time=(always,)) as (engine, store):
        engine.activate(old)
        leaving, go_on = threading.Event(), threading.Event()
        release = TaskGate.release

        def slow(gate: TaskGate) -> None:
            monkeypatch.undo()
            leaving.set()
            assert go_on.wait(20)
            release(gate)

        monkeypatch.setattr(TaskGate, "release", slow)
        switching = InThread(lambda: engine.activate(new))
        assert leaving.wait(20)
        store.hang()

        def ask() -> torch.Tensor:
            with engine.task(always) as module:
                return logits(module)

        asking = InThread(ask)
        waits(asking)
        go_on.set()
        assert torch.equal(asking.result(), expected[always])
        waits(switching)
        store.resume()
        assert torch.equal(logits(switching.result()), expected[new])


def test_a_timeout_bounds_waiting_for_a_prediction(
    bundle: Bundle, expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    with wp.Engine.from_pretrained(bundle.path) as engine:
        wanted = engine.predict("animal", TEXTS)
        with computing(engine, "animal", monkeypatch) as prediction:
            with pytest.raises(BusyError, match="prediction or reload was still going on when the timeout passed"):
                engine.activate("weather", timeout=0.05)
            assert prediction.is_alive()
            waiting = InThread(lambda: engine.activate("weather", timeout=20))
            waits(waiting)
        assert prediction.result() == wanted
        assert torch.equal(logits(waiting.result()), expected["weather"])


def test_a_real_time_task_predicts_beside_another_prediction(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with wp.Engine.from_pretrained(bundle.path, real_time=["weather"]) as engine:
        wanted = {task: engine.predict(task, TEXTS) for task in ("weather", "animal")}
        with computing(engine, "animal", monkeypatch) as prediction:
            beside = InThread(lambda: engine.predict("weather", TEXTS))
            assert beside.result() == wanted["weather"]
            assert prediction.is_alive()
        assert prediction.result() == wanted["animal"]
        assert engine._holds.current == "animal"


def test_predictions_of_one_real_time_task_follow_one_another(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with wp.Engine.from_pretrained(bundle.path, real_time=["weather"]) as engine:
        wanted = engine.predict("weather", TEXTS)
        with computing(engine, "weather", monkeypatch) as prediction:
            monkeypatch.undo()
            other = InThread(lambda: engine.predict("weather", TEXTS))
            waits(other)
        assert prediction.result() == other.result() == wanted


def test_a_real_time_task_predicts_while_another_is_loaded(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    with hanging(bundle, io_threads=1, real_time=("weather",)) as (engine, store):
        wanted = engine.predict("weather", TEXTS)
        store.hang()
        loading = InThread(lambda: engine.activate("animal"))
        waits(loading)
        assert InThread(lambda: engine.predict("weather", TEXTS)).result() == wanted
        assert loading.is_alive()
        store.resume()
        assert torch.equal(logits(loading.result()), expected["animal"])


def test_a_task_that_is_built_keeps_nobody_from_entering_another(
    bundle: Bundle, expected: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    building, go_on = threading.Event(), threading.Event()
    build = task_module.build

    def slow(parts: TaskParts[Any], *rest: Any) -> torch.nn.Module:
        if parts.name == "weather":
            building.set()
            assert go_on.wait(20)
        return build(parts, *rest)

    with wp.Engine.from_pretrained(bundle.path) as engine:
        engine.activate("animal")
        monkeypatch.setattr(task_module, "build", slow)
        modules = [InThread(lambda: engine.module("weather")) for _ in range(2)]
        assert building.wait(20)
        entering = InThread(lambda: logits(engine.activate("animal")))
        assert torch.equal(entering.result(), expected["animal"])
        go_on.set()
        assert modules[0].result() is modules[1].result()


def test_modules_that_are_built_at_once_leave_the_process_as_it_was(bundle: Bundle) -> None:
    """transformers changes torch's default dtype while it builds one."""
    config, before = read_config(bundle), (torch.get_default_dtype(), transformers_logging.get_verbosity())
    config.dtype = torch.bfloat16

    def build() -> None:
        for task in TASKS * 3:
            module = empty_module(config, bundle.task(task))
            assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}

    for building in [InThread(build) for _ in range(3)]:
        building.result()
    assert (torch.get_default_dtype(), transformers_logging.get_verbosity()) == before


def test_activating_again_waits_for_what_is_still_on_its_way(bundle: Bundle, expected: dict[str, torch.Tensor]) -> None:
    with hanging(bundle, io_threads=1) as (engine, store):
        store.hang()
        module = engine.activate("animal", wait=False)
        assert engine.activate("animal", wait=False) is module
        waiting = InThread(lambda: engine.activate("animal"))
        waits(waiting)
        store.resume()
        assert waiting.result() is module
        assert engine.blocks.is_resident(bundle.task_numbers["animal"])
        assert torch.equal(logits(module), expected["animal"])
        engine.deactivate()
        assert engine.report().active == ()
        settle(engine)


def test_a_layer_of_a_task_that_was_left_does_not_wait_for_pages_that_never_come(bundle: Bundle) -> None:
    with hanging(bundle, io_threads=1) as (engine, store):
        store.hang()
        module = engine.activate("animal", wait=False)
        running = InThread(lambda: logits(module))
        waits(running)
        engine.deactivate()
        with pytest.raises(TaskNotActiveError):
            running.result()


def test_no_load_of_a_task_that_was_left_goes_on(bundle: Bundle) -> None:
    """Whoever began it, and however many."""
    with hanging(bundle, io_threads=1) as (engine, store):
        store.hang()
        with engine.task("animal", wait=False), engine.task("animal", wait=False):
            store.wait_for_a_read()
        store.resume()
        settle(engine)
        assert len(store.begun) == 1


def test_pages_of_two_tasks_are_not_read_when_both_were_left(bundle: Bundle) -> None:
    """Also those that the second waited for, and the first had begun to load."""
    with hanging(bundle, io_threads=1) as (engine, store):
        store.hang()
        first, second = engine.task("animal", wait=False), engine.task("weather", wait=False)
        first.__enter__()
        store.wait_for_a_read()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        store.resume()
        settle(engine)
        assert len(store.begun) == 1


def test_a_layer_looks_again_when_its_task_was_entered_anew_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = TaskGate("animal")
    first, second = (PendingPages([0], np.zeros(1, np.int32), 60.0) for _ in range(2))
    gate.hold(first)
    reader = object()
    entering = InThread(lambda: gate.enter(reader, 0))
    waits(entering)
    gate.release()
    gate.hold(second)
    first.arrived([0])
    waits(entering)
    second.arrived([0])
    entering.result()
    gate.leave(reader)


def test_a_failed_load_does_not_close_the_gate_for_who_has_the_task_in_place() -> None:
    gate = TaskGate("animal")
    failed = PendingPages([0], np.zeros(1, np.int32), 60.0)
    failed.failed(BudgetError("any", 0))
    gate.hold()
    gate.hold(failed)
    reader = object()
    gate.enter(reader, 0)
    gate.leave(reader)
    assert not gate.has_failed


def test_leaving_does_not_hang_when_the_device_fails() -> None:
    def broken() -> None:
        raise RuntimeError("a device that has failed")

    gate = TaskGate("animal", broken)
    gate.hold()
    reader = object()
    with pytest.raises(RuntimeError):
        try:
            gate.enter(reader, 0)
            gate.note_read()
        finally:
            gate.leave(reader)
    gate.release()


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_a_timeout_that_is_none_is_refused(bundle: Bundle, timeout: float) -> None:
    with wp.Engine.from_pretrained(bundle.path) as engine:
        with pytest.raises(ConfigError, match="timeout: expected seconds from 0"):
            engine.activate("animal", timeout=timeout)
        engine.activate("animal", timeout=float("inf"))


def test_an_engine_that_cannot_be_opened_keeps_no_file_open(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(bundle.path, tmp_path / "b.bundle")
    damaged = Bundle.open(tmp_path / "b.bundle")
    file = tmp_path / "b.bundle" / private_file("weather")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(BundleError):
        wp.Engine(damaged, EngineConfig())
    assert set(os.listdir("/proc/self/fd")) <= before

    def refuses(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("weightpager.engine.open_bundle.Residency", refuses)
    threads = threading.active_count()
    with pytest.raises(MemoryError):
        wp.Engine(bundle, EngineConfig())
    assert set(os.listdir("/proc/self/fd")) <= before
    assert threading.active_count() <= threads

"""What comes next, as people are told."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import weightpager as wp
from encoder_tasks import TASKS
from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect
from weightpager.config import EngineConfig
from weightpager.engine.forecasts import ForecastReport
from weightpager.runtime.prediction.markov import MarkovPredictor


def forecast(engine: wp.Engine) -> ForecastReport:
    found = engine.forecast()
    assert found is not None
    return found


def sums(found: ForecastReport) -> list[float]:
    return [sum(chances.values()) for chances in (found.next, *found.after.values())]


def likeliest(found: ForecastReport) -> dict[str, str]:
    return {task: max(chances, key=chances.__getitem__) for task, chances in found.after.items()}


def test_nothing_is_known_before_the_first_request(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig()) as engine:
        assert engine.forecast() is None
        engine.activate("animal")
        found = forecast(engine)
    assert found.switches == found.log_loss == 0
    assert sums(found) == pytest.approx([1.0] * 5)
    assert found.next["animal"] == found.after["weather"]["weather"] == 0.0


@pytest.mark.parametrize("ahead", [False, True])
def test_a_round_is_learnt(bundle: Bundle, ahead: bool) -> None:
    with wp.Engine(bundle, EngineConfig(prefetch=ahead)) as engine:
        losses = []
        for _ in range(3):
            for task in TASKS * 4:
                engine.activate(task)
            losses.append(forecast(engine).log_loss)
        found = forecast(engine)
        assert engine.report().bytes_read == len(engine.blocks.resident()) * bundle.page_bytes
    assert losses == sorted(losses, reverse=True)
    assert (found.switches, found.hit_rate > 0.8) == (47, True)
    assert likeliest(found) == dict(zip(TASKS, (*TASKS[1:], TASKS[0]), strict=True))
    assert max(found.next, key=found.next.__getitem__) == TASKS[0]
    assert found.seconds is not None
    assert sums(found) == pytest.approx([1.0] * 5)


def test_when_it_is_asked_changes_nothing(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig()) as often, wp.Engine(bundle, EngineConfig()) as once:
        for task in TASKS * 5:
            often.activate(task)
            often.forecast()
            once.activate(task)
        many, one = forecast(often), forecast(once)
    assert (many.after, many.switches) == (one.after, one.switches)


def test_an_earlier_run_is_known_but_not_what_runs_now(bundle: Bundle, tmp_path: Path) -> None:
    config = EngineConfig(history=tmp_path / "history")
    with wp.Engine(bundle, config) as engine:
        for task in TASKS * 5:
            engine.activate(task)
        before = forecast(engine)
    with wp.Engine(bundle, config) as engine:
        found = forecast(engine)
        assert (found.next, found.seconds) == ({}, None)
        assert (likeliest(found), found.switches) == (likeliest(before), before.switches)
        engine.activate("number")
        found = forecast(engine)
        assert found.switches == before.switches  # what led here isn't known
        assert max(found.next, key=found.next.__getitem__) == "colour"


def test_it_follows_a_bundle_that_changes(assistant_bundle: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(assistant_bundle, tmp_path / "changing.bundle"))
    with wp.Engine.from_pretrained(path) as engine:
        for task in TASKS * 3:
            engine.activate(task)
        assert set(forecast(engine).after) == set(TASKS)
        collect(path, ["weather"])
        engine.reload()
        found = forecast(engine)
    assert set(found.after) == set(found.next) == set(TASKS) - {"weather"}
    assert sums(found) == pytest.approx([1.0] * 4)


def test_several_threads_may_ask(bundle: Bundle) -> None:
    with wp.Engine(bundle, EngineConfig()) as engine:
        found: list[ForecastReport | None] = []
        threads = [threading.Thread(target=lambda: found.append(engine.forecast())) for _ in range(8)]
        for task in TASKS * 5:
            engine.activate(task)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [one.switches for one in found if one] == [19] * 8


def test_what_follows_a_task_is_not_a_matter_of_the_present() -> None:
    predictor = MarkovPredictor(3)
    for number in range(30):
        predictor.observe(number % 3, float(number))
    for task in range(3):
        chances = predictor.after(task)
        assert int(np.argmax(chances)) == (task + 1) % 3
        assert chances.sum() == pytest.approx(1.0)

"""Bundles of one budget: what comes next is there whichever bundle it belongs to, and never at others' expense."""

from __future__ import annotations

import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

import weightpager as wp
from waiting import until
from weightpager.engine.report import PrefetchReport
from weightpager.runtime.sharing import Bounds
from weightpager.trace_file import Visit

TEXTS = ["the cat sat", "it rains"]


@pytest.fixture(scope="module")
def paths(assistant_bundle: Path, wordy_bundle: Path, writer_bundle: Path) -> list[Path]:
    return [assistant_bundle, wordy_bundle, writer_bundle]


def always(task: str) -> Callable[[Sequence[Visit]], Mapping[str, float]]:
    return lambda visits: {task: 1.0}


def resident(models: wp.Models, name: str) -> bool:
    owner, task = name.split("/")
    engine = models.engines.get(owner)
    return engine is not None and engine.blocks.is_resident(engine.bundle.task_numbers[task])


def prefetched(models: wp.Models, name: str) -> PrefetchReport:
    report = models.bundles[name].report()
    assert report is not None
    assert report.prefetch is not None
    return report.prefetch


def answers(model: wp.Engine | wp.Models, name: str) -> list[object]:
    return [(answer.label, answer.score) for answer in model.predict(name, TEXTS)]


def bounds(paths: list[Path]) -> dict[str, Bounds]:
    with wp.Models.from_pretrained(paths) as models:
        return {name: bundle.bounds for name, bundle in models.bundles.items()}


def task_of(models: wp.Models, owner: str, place: int = 0) -> str:
    return f"{owner}/{list(models.bundles[owner].tasks)[place]}"


def test_a_task_of_another_bundle_is_there_before_it_is_asked_for(paths: list[Path]) -> None:
    with wp.load(paths[1]) as engine:
        task = next(iter(engine.tasks))
        expected = answers(engine, task)
    name = f"{paths[1].stem}/{task}"
    with wp.Models.from_pretrained(paths, prefetch=always(name)) as models:
        models.activate(task_of(models, paths[0].stem))
        until(lambda: resident(models, name))
        read = models.bundles[paths[1].stem].bytes_read
        assert answers(models, name) == expected
        rows = models.engines[paths[1].stem].report().rows
        assert models.engines[paths[1].stem].report().switches[-1].pages == 0
        assert rows is not None or models.bundles[paths[1].stem].bytes_read == read
        assert prefetched(models, paths[1].stem).pages.hits > 0


def test_a_bundle_that_sleeps_for_want_of_room_wakes_where_room_is_left(paths: list[Path]) -> None:
    """Memory for two: the one that comes next takes the place of one that doesn't, never of the one in use."""
    first, second, third = (path.stem for path in paths)
    found = bounds(paths)
    budget = sum(each.kept for each in found.values()) - 1
    assert budget >= max(each.least for each in found.values())
    named: list[str] = []
    with wp.Models.from_pretrained(
        paths, budget=budget, prefetch=lambda visits: {named[-1]: 1.0} if named else {}
    ) as models:
        named.append(task_of(models, third))
        models.activate(task_of(models, second))
        models.activate(task_of(models, first))
        until(lambda: models.bundles[third].engine is not None)
        assert models.bundles[first].engine is not None
        until(lambda: resident(models, named[-1]))
        assert sum(models.shares.values()) <= models.budget


def test_who_was_put_to_sleep_sleeps_until_asked_for(paths: list[Path]) -> None:
    second = paths[1].stem
    with wp.Models.from_pretrained(paths) as models:
        name = task_of(models, second)
    with wp.Models.from_pretrained(paths, prefetch=always(name)) as models:
        models.sleep(second)
        models.activate(task_of(models, paths[0].stem))
        time.sleep(0.3)
        assert models.bundles[second].engine is None
        models.predict(name, TEXTS)
        models.activate(task_of(models, paths[0].stem))
        until(lambda: resident(models, name))


def test_nothing_of_a_bundle_that_sleeps_stays_in_memory(paths: list[Path]) -> None:
    first, second = (path.stem for path in paths[:2])
    with wp.Models.from_pretrained(paths[:2], prefetch=True) as models:
        for _ in range(3):
            for owner in (first, second):
                models.activate(task_of(models, owner))
                time.sleep(0.1)
        models.activate(task_of(models, first))
        there = weakref.ref(models.engines[second]._open.memory.arena)
        models.sleep(second)
        gc.collect()
        until(lambda: there() is None)
        models.activate(task_of(models, second))
        assert second in models._prefetching._parts  # type: ignore[union-attr]


def test_what_was_learnt_outlives_sleep_and_other_tasks(paths: list[Path]) -> None:
    first, second, third = (path.stem for path in paths)
    with wp.Models.from_pretrained(paths, prefetch=True) as models:
        day = [task_of(models, first), task_of(models, second), task_of(models, third)]
        for _ in range(6):
            for name in day:
                models.activate(name)
                time.sleep(0.01)
        models.activate(day[0])
        models.sleep(second)
        models.remove(third)
        models.add(paths[2])
        models.activate(day[1])
        models.evict()
        models.activate(day[0])
        until(lambda: resident(models, day[1]))
        assert prefetched(models, first).hit_rate > 0.5


def test_a_bundle_that_cannot_be_woken_ahead_is_an_error_of_who_asks_for_it(paths: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.bundle"
    shutil.copytree(paths[1], broken)
    with wp.Models.from_pretrained([paths[0], broken]) as models:
        name, other = task_of(models, "broken"), task_of(models, paths[0].stem)
        expected = answers(models, other)
    with wp.Models.from_pretrained([paths[0], broken], prefetch=always(name)) as models:
        models.sleep("broken")
        models.bundles["broken"].waits = False
        (broken / "manifest.json").write_text("{")
        assert answers(models, other) == expected
        time.sleep(0.2)
        assert answers(models, other) == expected
        assert models.bundles["broken"].engine is None
        with pytest.raises(wp.BundleError):
            models.predict(name, TEXTS)


@pytest.mark.parametrize("answer", [RuntimeError("the map is gone"), None, {"nobody": 1.0}], ids=str)
def test_a_planner_that_fails_is_no_matter_for_answers(paths: list[Path], answer: object) -> None:
    def planner(visits: Sequence[Visit]) -> Mapping[str, float]:
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[return-value]

    with wp.Models.from_pretrained(paths[:2]) as models:
        expected = {name: answers(models, name) for name in models.tasks}
    with wp.Models.from_pretrained(paths[:2], prefetch=planner) as models:
        for _ in range(2):
            for name in models.tasks:
                assert answers(models, name) == expected[name]


@pytest.mark.parametrize("closed", [True, False])
def test_the_thread_ends_with_the_models(paths: list[Path], closed: bool) -> None:
    before = set(threading.enumerate())

    def began() -> list[str]:
        return [each.name for each in threading.enumerate() if each not in before and "weightpager" in each.name]

    models = wp.Models.from_pretrained(paths, prefetch=True)
    models.activate(task_of(models, paths[0].stem))
    assert began().count("weightpager-prefetcher") == 1
    if closed:
        models.close()
    del models
    gc.collect()
    until(lambda: not began())

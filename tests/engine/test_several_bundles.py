"""Several bundles under one budget: whatever is run in whatever order, outputs are those of engines of their own."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import weightpager as wp
from engines import InThread, check_pages
from weightpager.runtime.budget import largest_budget

TEXTS = ["the cat sat", "a red car", "it rains"]


@pytest.fixture(scope="module")
def paths(assistant_bundle: Path, wordy_bundle: Path, writer_bundle: Path) -> list[Path]:
    """Bundles of different page sizes; one has its embedding rows in pages, one writes."""
    return [assistant_bundle, wordy_bundle, writer_bundle]


def answers(model: wp.Engine | wp.Models, name: str) -> list[object]:
    return [(answer.label, answer.score) for answer in model.predict(name, TEXTS)]


@pytest.fixture(scope="module")
def expected(paths: list[Path]) -> dict[str, list[object]]:
    found = {}
    for path in paths:
        with wp.load(path) as engine:
            found |= {f"{path.stem}/{task}": answers(engine, task) for task in engine.tasks}
    return found


def least(paths: list[Path]) -> int:
    with pytest.raises(wp.BudgetError, match="smallest that would do") as refused:
        wp.Models.from_pretrained(paths, budget=1000)
    assert refused.value.smallest is not None
    return refused.value.smallest


def test_every_task_runs_in_the_smallest_budget(paths: list[Path], expected: Mapping[str, list[object]]) -> None:
    with wp.Models.from_pretrained(paths, budget=least(paths)) as models:
        for _ in range(2):
            for name in models.tasks:
                assert answers(models, name) == expected[name]
                assert sum(models.shares.values()) <= models.budget
    with pytest.raises(wp.BudgetError):
        wp.Models.from_pretrained(paths, budget=least(paths) - 1)


def test_memory_goes_where_it_is_wanted(paths: list[Path]) -> None:
    with wp.Models.from_pretrained(paths[:2], budget=least(paths[:2])) as models:
        first, second = models.engines
        task = max(models.engines[first].tasks, key=lambda name: models.engines[first].wish(name).least)
        models.predict(f"{first}/{task}", TEXTS)
        had = models.shares
        task = max(models.engines[second].tasks, key=lambda name: models.engines[second].wish(name).least)
        models.predict(f"{second}/{task}", TEXTS)
        assert models.shares[second] > had[second]
        assert models.shares[first] < had[first]


def test_without_a_budget_nothing_is_read_twice(paths: list[Path]) -> None:
    with wp.Models.from_pretrained(paths) as models:
        assert models.budget == sum(largest_budget(wp.Bundle.open(path)) for path in paths)
        for _ in range(2):
            for name in models.tasks:
                models.predict(name, TEXTS)
        assert all(engine.report().reloaded_pages == 0 for engine in models.engines.values())


def test_a_task_is_named_by_its_bundle_where_several_have_it(paths: list[Path]) -> None:
    with wp.Models.from_pretrained(paths) as models:
        assert models.predict("writer/notes" if "writer/notes" in models.tasks else next(iter(models.tasks)), TEXTS)
        with pytest.raises(wp.UnknownTaskError, match="assistant/animal"):
            models.predict("animal", TEXTS)  # the wordy bundle has it, too
        with pytest.raises(wp.UnknownTaskError):
            models.predict("assistant/nothing", TEXTS)


def test_tasks_in_use_stay_and_are_named_when_nothing_else_fits(paths: list[Path]) -> None:
    with wp.Models.from_pretrained(paths[:2], budget=least(paths[:2])) as models, ExitStack() as held:
        with pytest.raises(wp.BudgetError, match="beside the tasks in use"):
            for name in models.tasks:
                held.enter_context(models.task(name))
        held.close()
        for name in models.tasks:
            models.predict(name, TEXTS)


def test_a_timeout_bounds_the_wait_for_another_thread(paths: list[Path]) -> None:
    with wp.Models.from_pretrained(paths) as models, models._sharing:

        def enter() -> None:
            with models.task("assistant/animal", timeout=0.01):
                raise AssertionError

        with pytest.raises(wp.BusyError):
            InThread(enter).result()


def test_threads_get_what_they_would_get_alone(paths: list[Path], expected: Mapping[str, list[object]]) -> None:
    with wp.Models.from_pretrained(paths, budget=least(paths)) as models:
        threads = [InThread(lambda name=name: [answers(models, name) for _ in range(4)]) for name in models.tasks]
        for name, thread in zip(models.tasks, threads, strict=True):
            assert thread.result() == [expected[name]] * 4
        for engine in models.engines.values():
            check_pages(engine)


def test_a_stream_goes_on_between_other_bundles_tasks(paths: list[Path]) -> None:
    with wp.Models.from_pretrained(paths, budget=least(paths)) as models:
        task = next(name for name in models.tasks if name.startswith("writer/"))
        whole = models.generate(task, "the cat", max_new_tokens=6).completion
        pieces = []
        for piece in models.stream(task, "the cat", max_new_tokens=6):
            pieces.append(piece)
            models.predict("assistant/animal", TEXTS)
        assert "".join(pieces) == whole


def test_what_fails_in_one_bundle_leaves_the_others(
    paths: list[Path], expected: Mapping[str, list[object]], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.bundle"
    shutil.copytree(paths[0], broken)
    with wp.Models.from_pretrained([broken, paths[1]], budget=least([broken, paths[1]])) as models:
        for page in broken.glob("pages*"):
            page.write_bytes(bytes(page.stat().st_size))
        with pytest.raises(wp.WeightpagerError):
            for name in models.engines["broken"].tasks:
                models.predict(f"broken/{name}", TEXTS)
        assert answers(models, "wordy/animal") == expected["wordy/animal"]
        assert sum(models.shares.values()) <= models.budget


def test_bad_arguments_are_refused(paths: list[Path]) -> None:
    for bundles in ([], str(paths[0]), [paths[0], paths[0]]):
        with pytest.raises(wp.ConfigError, match="bundles: expected"):
            wp.Models.from_pretrained(bundles)
    with pytest.raises(wp.ConfigError, match="budget"):
        wp.Models.from_pretrained(paths, budget="much")


def test_closed_models_run_nothing(paths: list[Path]) -> None:
    before = threading.active_count()
    models = wp.Models.from_pretrained(paths)
    models.close()
    models.close()
    with pytest.raises(wp.EngineClosedError):
        models.predict("assistant/animal", TEXTS)
    assert threading.active_count() <= before


class AnySequence(RuleBasedStateMachine):
    """Predicts, holds, releases and evicts tasks of three bundles under a budget that may be tight."""

    paths: list[Path]
    expected: Mapping[str, list[object]]
    least: int

    @initialize(room=st.floats(0, 1))
    def open(self, room: float) -> None:
        most = sum(largest_budget(wp.Bundle.open(path)) for path in self.paths)
        budget = self.least + round(room * max(0, most - self.least))
        self.models = wp.Models.from_pretrained(self.paths, budget=budget)
        self.held: list[tuple[ExitStack, str]] = []

    @rule(number=st.integers(0, 100))
    def predict(self, number: int) -> None:
        name = self._name(number)
        try:
            assert answers(self.models, name) == self.expected[name]
        except wp.BudgetError:
            assert self.held, "only tasks in use leave no room"

    @rule(number=st.integers(0, 100))
    def hold(self, number: int) -> None:
        block = ExitStack()
        try:
            block.enter_context(self.models.task(self._name(number)))
        except wp.BudgetError:
            assert self.held, "only tasks in use leave no room"
        else:
            self.held.append((block, self._name(number)))

    @rule()
    def release(self) -> None:
        if self.held:
            self.held.pop(0)[0].close()

    @rule()
    def evict(self) -> None:
        self.models.evict()

    @invariant()
    def the_budget_holds(self) -> None:
        if not hasattr(self, "models"):
            return
        used = [engine.report().memory.total for engine in self.models.engines.values()]
        assert sum(used) <= sum(self.models.shares.values()) <= self.models.budget
        for engine in self.models.engines.values():
            check_pages(engine)

    def teardown(self) -> None:
        if hasattr(self, "models"):
            for block, _ in self.held:
                block.close()
            self.models.close()

    def _name(self, number: int) -> str:
        return list(self.expected)[number % len(self.expected)]


@pytest.fixture
def any_sequence(paths: list[Path], expected: Mapping[str, list[object]]) -> type[AnySequence]:
    AnySequence.paths, AnySequence.expected, AnySequence.least = paths, expected, least(paths)
    return AnySequence


def test_any_sequence_of_three_bundles(any_sequence: type[AnySequence]) -> None:
    limits = settings(max_examples=15, stateful_step_count=20, deadline=None)
    run_state_machine_as_test(any_sequence, settings=limits)

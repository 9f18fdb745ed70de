"""Several bundles under one budget: whatever is run in whatever order, outputs are those of engines of their own."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import tiny
import weightpager as wp
from engines import Always, InThread, check_pages
from lora import lora
from weightpager.backends.open_backend import open_backend
from weightpager.bundle.addition import Addition, add_task
from weightpager.engine import shared_prefetching
from weightpager.runtime.budget import largest_budget

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # what PEFT says

TEXTS = ["the cat sat", "a red car", "it rains"]
PICTURE = np.random.default_rng(0).integers(0, 256, (31, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def paths(assistant_bundle: Path, wordy_bundle: Path, writer_bundle: Path) -> list[Path]:
    """Bundles of different page sizes; one has its embedding rows in pages, one writes."""
    return [assistant_bundle, wordy_bundle, writer_bundle]


@pytest.fixture(scope="module")
def adapted_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks that keep all blocks, and one by an adapter whose low-rank parts lie in pages."""
    folder = tmp_path_factory.mktemp("adapted")
    model = tiny.llama(folder / "model")
    wp.compile(tiny.writer(folder, model=model, sparsity=0, compare="none"), folder / "adapted.bundle")
    lora(model, folder / "lora")
    add_task(folder / "adapted.bundle", Addition("quiet", folder / "lora"))
    return folder / "adapted.bundle"


def answers(model: wp.Engine | wp.Models, name: str) -> list[object]:
    if name in model.tasks and model.tasks[name].generation is not None:  # those of this file read pictures
        return [model.generate(name, text, [PICTURE]).text for text in TEXTS]
    return [(answer.label, answer.score) for answer in model.predict(name, TEXTS)]


def alone(paths: list[Path]) -> dict[str, list[object]]:
    """The answers of engines of their own."""
    found: dict[str, list[object]] = {}
    for path in paths:
        with wp.load(path) as engine:
            found |= {f"{path.stem}/{task}": answers(engine, task) for task in engine.tasks}
    return found


@pytest.fixture(scope="module")
def expected(paths: list[Path]) -> dict[str, list[object]]:
    return alone(paths)


def least(paths: list[Path]) -> int:
    with pytest.raises(wp.BudgetError, match="smallest that would do") as refused:
        wp.Models.from_pretrained(paths, budget=1000)
    assert refused.value.smallest is not None
    return refused.value.smallest


def test_every_task_runs_in_the_smallest_budget(
    paths: list[Path], expected: Mapping[str, list[object]], caplog: pytest.LogCaptureFixture
) -> None:
    with wp.Models.from_pretrained(paths, budget=least(paths)) as models:
        for _ in range(2):
            for name in models.tasks:
                assert answers(models, name) == expected[name]
                assert sum(models.shares.values()) <= models.budget
    assert "load again" not in caplog.text  # a larger share isn't for the user to state
    with pytest.raises(wp.BudgetError):
        wp.Models.from_pretrained(paths, budget=least(paths) - 1)


def test_memory_goes_where_it_is_wanted(paths: list[Path]) -> None:
    kept = sum(wp.Models.from_pretrained([path]).bundles[path.stem].bounds.kept for path in paths[:2])
    with wp.Models.from_pretrained(paths[:2], budget=max(least(paths[:2]), kept)) as models:
        first, second = models.bundles.values()
        models.predict(f"{first.name}/{max(first.tasks, key=first.bounds.alone.__getitem__)}", TEXTS)
        had = models.shares
        models.predict(f"{second.name}/{max(second.tasks, key=second.bounds.alone.__getitem__)}", TEXTS)
        assert models.shares[second.name] > had[second.name]
        assert models.shares[first.name] < had[first.name]


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
        begun = models.stream("writer/animals", "the cat", max_new_tokens=6)
        with pytest.raises(wp.BudgetError, match="beside the tasks in use") as refused:
            models.predict("assistant/animal", TEXTS)
        del begun  # its bundle may sleep again
        assert models.predict("assistant/animal", TEXTS)
    with wp.Models.from_pretrained(paths, budget=refused.value.smallest) as models:
        task = "writer/animals"
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
            for name in models.bundles["broken"].tasks:
                models.predict(f"broken/{name}", TEXTS)
        assert answers(models, "wordy/animal") == expected["wordy/animal"]
        assert sum(models.shares.values()) <= models.budget


def test_a_bundle_sleeps_and_wakes(paths: list[Path], expected: Mapping[str, list[object]]) -> None:
    with wp.Models.from_pretrained(paths) as models:
        assert set(models.engines) == set(models.bundles), "all have room"
        for name in models.bundles:
            models.sleep(name)
            assert models.shares[name] == 0
        assert not models.engines
        for name in models.tasks:
            assert answers(models, name) == expected[name]
        assert set(models.engines) == set(models.bundles)


def test_what_gave_way_keeps_what_reads_its_inputs(
    paths: list[Path], expected: Mapping[str, list[object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Counter[str]()

    def counted(bundle: wp.Bundle, *asked: str) -> Any:
        opened[bundle.path.stem] += 1
        return open_backend(bundle, *asked)

    monkeypatch.setattr("weightpager.engine.shared_bundle.open_backend", counted)
    with wp.Models.from_pretrained(paths, budget=least(paths)) as models:
        for _ in range(2):
            assert {name: answers(models, name) for name in models.tasks} == expected
        assert any(bundle.engine is None for bundle in models.bundles.values())
        for name in models.bundles:
            models.sleep(name)
        assert {name: answers(models, name) for name in models.tasks} == expected
        assert set(opened.values()) == {1}


def test_rows_come_when_they_are_looked_up(wordy_bundle: Path) -> None:
    with wp.Models.from_pretrained([wordy_bundle]) as models:
        bundle = models.wake("wordy")
        assert bundle.bytes_read == 0
        models.predict(f"wordy/{bundle.bounds.smallest}", TEXTS)
        assert 0 < bundle.bytes_read < bundle.bounds.most


def test_what_is_idle_sleeps_and_what_is_in_use_does_not(paths: list[Path]) -> None:
    with wp.Models.from_pretrained(paths) as models:
        assert models.sleep_idle(60) == []
        with models.task("wordy/animal"):
            with pytest.raises(wp.BusyError, match=r"may go to sleep, found 'wordy'"):
                models.sleep("wordy")
            models.pin("writer/animals")
            assert models.sleep_idle(0) == ["assistant"]
        models.unpin("writer/animals")
        with pytest.raises(wp.TaskNotActiveError):
            models.unpin("writer/animals")
        assert models.sleep_idle(0) == ["wordy", "writer"]
        assert not models.engines


def test_real_time_tasks_never_leave(paths: list[Path], expected: Mapping[str, list[object]]) -> None:
    with pytest.raises(wp.BudgetError) as refused:
        wp.Models.from_pretrained(paths, budget=1000, real_time=["assistant/animal"])
    assert refused.value.smallest > least(paths)
    with wp.Models.from_pretrained(paths, budget=refused.value.smallest, real_time=["assistant/animal"]) as models:
        for name in models.tasks:
            assert answers(models, name) == expected[name]
            assert "animal" in models.engines["assistant"].resident_tasks
        awake = set(models.engines)
        assert set(models.sleep_idle(0)) == awake - {"assistant"}
        with models._sharing:  # it waits for nobody
            assert InThread(lambda: answers(models, "assistant/animal")).result() == expected["assistant/animal"]
    for name in ("animal", "nothing/animal"):
        with pytest.raises(wp.ConfigError, match="real_time: expected names such as assistant/TASK"):
            wp.Models.from_pretrained(paths, real_time=[name])
    with pytest.raises(wp.UnknownTaskError):
        wp.Models.from_pretrained(paths, real_time=["assistant/nothing"])


def test_another_budget_holds_at_once(paths: list[Path], expected: Mapping[str, list[object]]) -> None:
    with wp.Models.from_pretrained(paths) as models:
        for name in models.tasks:
            models.predict(name, TEXTS)
        whole = models.budget
        for budget in (whole // 2, least(paths), whole):
            models.set_budget(budget)
            assert sum(models.shares.values()) <= budget == models.budget
            for name in models.tasks:
                assert answers(models, name) == expected[name]
        with pytest.raises(wp.BudgetError, match="smallest that would do"):
            models.set_budget(least(paths) - 1)
        with ExitStack() as held:
            for name in ("assistant/animal", "wordy/animal", "writer/animals"):
                held.enter_context(models.task(name))
            with pytest.raises(wp.BudgetError, match="what the budget loses does not fit"):
                models.set_budget(least(paths))
        assert models.budget == whole


def test_bundles_come_and_go(paths: list[Path], expected: Mapping[str, list[object]], tmp_path: Path) -> None:
    with wp.Models.from_pretrained(paths[:1]) as models:
        with pytest.raises(wp.BusyError, match="another bundle"):
            models.remove("assistant")
        assert models.add(paths[2]) == "writer"
        assert answers(models, "animals") == expected["writer/animals"]
        with pytest.raises(wp.ConfigError, match="different names, found another of 'writer'"):
            models.add(paths[2])
        with pytest.raises(wp.BundleError):
            models.add(tmp_path / "nothing.bundle")
        models.remove("writer")
        with pytest.raises(wp.UnknownTaskError):
            models.predict("writer/animals", TEXTS)
        assert answers(models, "assistant/animal") == expected["assistant/animal"]
        models.set_budget(models.bundles["assistant"].bounds.least)
        larger = max(paths, key=lambda path: wp.Models.from_pretrained([path]).bundles[path.stem].bounds.least)
        if larger != paths[0]:
            with pytest.raises(wp.BudgetError, match="largest task of"):
                models.add(larger)
        assert list(models.bundles) == ["assistant"]


def test_a_bundle_that_was_replaced_while_it_slept_wakes_as_it_lies_there(
    paths: list[Path], expected: Mapping[str, list[object]], tmp_path: Path
) -> None:
    one = tmp_path / "one.bundle"
    shutil.copytree(paths[0], one)
    with wp.Models.from_pretrained([one, paths[1]]) as models:
        models.sleep("one")
        shutil.rmtree(one)
        with pytest.raises(wp.WeightpagerError):
            models.predict("one/animal", TEXTS)
        assert answers(models, "wordy/animal") == expected["wordy/animal"]
        shutil.copytree(paths[2], one)
        with pytest.raises(wp.BundleError, match="expected the model that the engine was opened with"):
            models.predict("one/animal", TEXTS)
        shutil.rmtree(one)
        shutil.copytree(paths[0], one)
        assert answers(models, "one/animal") == expected["assistant/animal"]


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

    @initialize(room=st.floats(0, 1), ahead=st.booleans())
    def open(self, room: float, ahead: bool) -> None:
        self.most = sum(largest_budget(wp.Bundle.open(path)) for path in self.paths)
        budget = self.least + round(room * (self.most - self.least))
        self.named: dict[str, float] = {}
        self.models = wp.Models.from_pretrained(
            self.paths, budget=budget, prefetch=ahead and (lambda visits: self.named)
        )
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

    @rule(numbers=st.lists(st.integers(0, 100), max_size=2))
    def name_what_is_next(self, numbers: list[int]) -> None:
        self.named = {self._name(number): 1.0 for number in numbers}

    @rule()
    def sleep(self) -> None:
        self.models.sleep_idle(0)

    @rule(room=st.floats(0, 1))
    def set_budget(self, room: float) -> None:
        before, budget = self.models.budget, self.least + round(room * (self.most - self.least))
        try:
            self.models.set_budget(budget)
        except wp.BudgetError:
            assert self.held, "only tasks in use leave no room"
            assert self.models.budget == before

    @rule()
    def evict(self) -> None:
        self.models.evict()

    @invariant()
    def the_budget_holds(self) -> None:
        if not hasattr(self, "models"):
            return
        with self.models._sharing:  # a bundle may be woken ahead at any time
            used = [engine.report().memory.total for engine in self.models.engines.values()]
            assert sum(used) <= sum(self.models.shares.values()) <= self.models.budget
            for engine in self.models.engines.values():
                check_pages(engine)
        ahead = self.models._prefetching
        assert ahead is None or ahead.prefetcher._thread.is_alive()

    def teardown(self) -> None:
        if hasattr(self, "models"):
            for block, _ in self.held:
                block.close()
            self.models.close()

    def _name(self, number: int) -> str:
        return list(self.expected)[number % len(self.expected)]


def run_any_sequence(paths: list[Path], expected: Mapping[str, list[object]]) -> None:
    AnySequence.paths, AnySequence.expected, AnySequence.least = paths, expected, least(paths)
    limits = settings(max_examples=25, stateful_step_count=20, deadline=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefetching, "PrefetchTrial", Always)
        run_state_machine_as_test(AnySequence, settings=limits)


def test_any_sequence_of_three_bundles(paths: list[Path], expected: Mapping[str, list[object]]) -> None:
    run_any_sequence(paths, expected)


def test_any_sequence_with_adapters_and_pictures(
    adapted_bundle: Path, watcher_bundle: Path, wordy_bundle: Path
) -> None:
    paths = [adapted_bundle, watcher_bundle, wordy_bundle]
    run_any_sequence(paths, alone(paths))

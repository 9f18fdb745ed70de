"""Traces in virtual time: what is loaded is what an engine would load, and policies can be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import tiny
import weightpager as wp
from same_everywhere import same_everywhere
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.compiler.data import read_transitions
from weightpager.compiler.selection.block_choice import HIGH
from weightpager.compiler.task_file.file import from_dict
from weightpager.errors import BudgetError
from weightpager.simulate.simulator import Device, Recency, Simulator
from weightpager.simulate.sizing import PREFETCH, Sizing
from weightpager.store import StorageModel
from weightpager.trace_file import Visit

STORAGE = StorageModel(1e6, seconds_per_read=0.0)
ROUND = ("animal", "weather", "number", "colour")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Tasks that share less than the usual ones; no trial sets the floors, which here would choose by chance."""
    folder = tmp_path_factory.mktemp("sparse")
    with pytest.MonkeyPatch.context() as patch, same_everywhere():
        patch.setattr("weightpager.compiler.calibration.choose_evenness", lambda *_: HIGH)
        wp.compile(tiny.assistant(folder, sparsity=0.85), out=folder / "sparse.bundle")
    return Bundle.open(folder / "sparse.bundle")


def visits(*tasks: str, dwell: float = 1.0) -> tuple[Visit, ...]:
    return tuple(Visit(task, number * dwell) for number, task in enumerate(tasks))


def budget_for(bundle: Bundle, pages: int) -> int:
    return footprint(bundle).total + pages * bundle.page_bytes


@pytest.mark.parametrize("spare", [0, 1, 3])
def test_as_many_pages_are_waited_for_as_an_engine_loads(bundle: Bundle, spare: int) -> None:
    simulator = Simulator(bundle)
    slots = simulator.largest_task + spare
    trace = [*ROUND, "animal", "number", "weather", *ROUND]
    learner = simulator.learner(STORAGE)
    found = simulator.run(visits(*trace), Device(slots, STORAGE), learner, prefetch=False)
    with wp.Engine.from_pretrained(bundle.path, budget=budget_for(bundle, slots)) as engine:
        for task in trace:
            engine.activate(task)
        assert [wait.pages for wait in found.waits] == [switch.pages for switch in engine.report().switches]


def test_a_wait_is_what_its_bytes_take(bundle: Bundle) -> None:
    simulator = Simulator(bundle)
    found = simulator.run(visits(*ROUND), Device(simulator.largest_task, STORAGE), Recency(), prefetch=False)
    for wait in found.waits:
        assert wait.seconds == pytest.approx(wait.pages * bundle.page_bytes / 1e6)
    assert len(found.switches) == 3


def test_loading_ahead_saves_a_regular_round_its_waits(bundle: Bundle) -> None:
    sizing = Sizing(bundle, visits(*ROUND * 20), STORAGE)
    slots = Simulator(bundle).largest_task + 1  # tasks are about as large as each other: something to prefetch into
    recency, reuse, ahead = sizing.waits(budget_for(bundle, slots))
    assert ahead.mean_ms < reuse.mean_ms <= recency.mean_ms
    assert ahead.hit_rate > 0.3
    assert recency.hit_rate == reuse.hit_rate == 0


def test_what_the_bundle_knows_of_switches_is_known_from_the_first_on(assistant_bundle: Path) -> None:
    """As to an engine that opens it."""
    plain = Bundle.open(assistant_bundle)
    steps = [[float(ROUND.index(b) == (ROUND.index(a) + 1) % 4) for b in plain.tasks] for a in plain.tasks]
    told = Bundle(plain.path, replace(plain.manifest, transitions=steps), plain.index, plain.placement)
    predictor = Sizing(told, visits(*ROUND), STORAGE)._use_predictor(PREFETCH)
    predictor.observe(plain.task_numbers["animal"], 0.0)
    uses = predictor.uses(0.5)
    assert uses is not None
    assert uses.argmax() == plain.task_numbers["weather"]


def test_pages_are_loaded_ahead_from_the_first_visit_on(assistant_bundle: Path) -> None:
    """As an engine does it: what fills the empty arena couldn't have been foreseen."""
    simulator = Simulator(Bundle.open(assistant_bundle))
    device = Device(simulator.all_pages, STORAGE)
    found = simulator.run(visits("animal", "weather"), device, simulator.learner(STORAGE))
    assert found.waits[1].seconds == 0


def test_pages_that_were_on_their_way_when_a_switch_came_are_loaded_too(bundle: Bundle) -> None:
    """With room for all, every page but the first task's is loaded once, whenever that is."""
    once = len(bundle.pages) - len(bundle.pages_of("animal"))
    trace = tuple(Visit(task, time) for task, time in zip(ROUND, (0.0, 0.02, 0.025, 0.03), strict=True))
    simulator = Simulator(bundle)
    found = simulator.run(trace, Device(len(bundle.pages), STORAGE), simulator.learner(STORAGE))
    assert found.prefetched.late
    ahead = Sizing(bundle, trace, STORAGE).waits(None)[-1]
    assert ahead.bytes_per_switch == pytest.approx(once * bundle.page_bytes / 3)


@pytest.mark.slow
def test_the_smallest_budget_waits_no_longer_than_asked(bundle: Bundle) -> None:
    sizing = Sizing(bundle, visits(*ROUND * 10), STORAGE)
    least = budget_for(bundle, Simulator(bundle).largest_task)
    longest = sizing.waits(least)[-1].mean_ms
    assert sizing.smallest_budget((longest + 0.001) / 1e3) == least  # waits are rounded
    found = sizing.smallest_budget(longest / 2e3)
    assert found > least
    assert sizing.waits(found)[-1].mean_ms <= longest / 2


def test_a_wait_that_no_budget_gives_is_an_error(bundle: Bundle) -> None:
    with pytest.raises(BudgetError, match="waits longer on this trace"):
        Sizing(bundle, visits(*ROUND, dwell=0.0), STORAGE).smallest_budget(0.0)


def test_a_budget_below_the_largest_task_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BudgetError, match="the largest task"):
        Sizing(bundle, visits(*ROUND), STORAGE).slots(budget_for(bundle, Simulator(bundle).largest_task - 1))


def test_a_budget_below_every_task_is_told_what_the_largest_takes(bundle: Bundle) -> None:
    sizing = Sizing(bundle, visits(*ROUND), STORAGE)
    with pytest.raises(BudgetError, match=r"\(1024 bytes\) is too small\. To hold the largest task") as refused:
        sizing.slots(1024)
    assert sizing.slots(refused.value.smallest) == Simulator(bundle).largest_task


@pytest.mark.slow
def test_the_command_replays_a_file(assistant_bundle: Path, tmp_path: Path, weightpager: Callable[..., Any]) -> None:
    trace = tmp_path / "day.jsonl"
    lines = (json.dumps({"task": task, "time": float(number)}) for number, task in enumerate(ROUND * 5))
    trace.write_text("\n".join(lines))
    arguments = "simulate", assistant_bundle, "--trace", trace, "--storage", "1MB/s"
    facts = json.loads(weightpager(*arguments, "--max-wait", "30", "--json").out)
    assert [row["policy"] for row in facts["waiting"]] == ["least recently used", "expected reuse", "prefetch"]
    assert facts["visits"] == 20
    assert facts["smallest_budget"] > 0
    assert "19 switches" in weightpager(*arguments).out


def test_an_engines_history_is_a_trace_for_the_command_and_for_a_task_file(
    assistant_bundle: Path, tmp_path: Path, weightpager: Callable[..., Any]
) -> None:
    history = tmp_path / "history"
    for _ in range(2):
        with wp.Engine.from_pretrained(assistant_bundle, history=history) as engine:
            for task in (*ROUND, "animal"):
                engine.activate(task)
    facts = json.loads(weightpager("simulate", assistant_bundle, "--trace", history, "--json").out)
    assert facts["visits"] == 9  # the second run began with the task with which the first had ended
    found = read_transitions(from_dict(tiny.assistant(tmp_path) | {"transitions": str(history)}))
    assert found.matrix.argmax(axis=1).tolist() == [
        found.tasks.index(ROUND[(ROUND.index(task) + 1) % 4]) for task in found.tasks
    ]


def test_the_command_takes_a_trace_by_name(assistant_bundle: Path, weightpager: Callable[..., Any]) -> None:
    found = weightpager("simulate", assistant_bundle, "--trace", "robot", "--switches", "50", "--json")
    assert json.loads(found.out)["visits"] == 51


@pytest.mark.slow
def test_the_command_explains_waits_of_nothing(assistant_bundle: Path, weightpager: Callable[..., Any]) -> None:
    all_fit = weightpager("simulate", assistant_bundle, "--trace", "robot", "--switches", "50", "--quiet").out
    pages = len(Bundle.open(assistant_bundle).pages)
    assert f"room for {pages} of {pages} pages" in all_fit
    for words in (
        "all pages fit",
        "without a wait: switches that found all",
        "there in time: of the pages that had to",
    ):
        assert words in all_fit
    least = budget_for(Bundle.open(assistant_bundle), Simulator(Bundle.open(assistant_bundle)).largest_task)
    found = weightpager("simulate", assistant_bundle, "--trace", "robot", "--budget", str(least), "-q")
    assert (found.code, "all pages fit" in found.out) == (0, False)
    facts = json.loads(weightpager("simulate", assistant_bundle, "--trace", "robot", "--json").out)
    assert all(0.9 < row["without_wait"] <= 1 for row in facts["waiting"])


def test_a_named_trace_has_no_switch_where_there_is_one_task(tmp_path: Path, weightpager: Callable[..., Any]) -> None:
    content = tiny.assistant(tmp_path)
    wp.compile(content | {"tasks": {"animal": content["tasks"]["animal"]}}, out=tmp_path / "one.bundle")
    found = weightpager("simulate", tmp_path / "one.bundle", "--trace", "robot")
    assert found.code == 2
    assert "expected at least two tasks" in found.err


def test_a_trace_without_times_is_refused(
    assistant_bundle: Path, tmp_path: Path, weightpager: Callable[..., Any]
) -> None:
    (tmp_path / "day.jsonl").write_text('{"task": "animal"}\n{"task": "number"}\n')
    found = weightpager("simulate", assistant_bundle, "--trace", tmp_path / "day.jsonl")
    assert found.code == 2
    assert "expected a time" in found.err


def test_options_that_would_be_ignored_are_refused(
    assistant_bundle: Path, tmp_path: Path, weightpager: Callable[..., Any]
) -> None:
    trace = tmp_path / "day.jsonl"
    trace.write_text('{"task": "animal", "time": 1}\n{"task": "weather", "time": 2}\n')
    for options, words in (
        ((trace, "--switches", 5), "--switches, --dwell: expected them for a trace given by name"),
        ((trace, "--dwell", 0), "--switches, --dwell: expected them for a trace given by name"),
        (("robot", "--compute", 5), "--compute: expected it with --replicas"),
    ):
        found = weightpager("simulate", assistant_bundle, "--trace", *options)
        assert (found.code, words in found.err) == (2, True)

"""Replicas in virtual time: they load what real engines load, and every way of routing keeps its promises."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightpager as wp
from engines import InThread
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.routing import Affinity, ReplicaView, RoundRobin, Router
from weightpager.simulate.replica import Replay, ServerModel
from weightpager.simulate.routing_comparison import RoutingComparison, TaskHomes
from weightpager.simulate.simulator import Device, Simulator
from weightpager.store import StorageModel
from weightpager.trace_file import Visit

STORAGE = StorageModel(1e6, seconds_per_read=0.0)
SPARSE = 10.0
"""Seconds between requests that never meet each other."""

TASKS = tuple(f"task-{number:02d}" for number in range(6))
lists = st.lists(st.sampled_from(TASKS), min_size=1, max_size=40)
gaps = st.lists(st.sampled_from([0.0, 0.01, 0.05, 1.0]), min_size=40, max_size=40)


def requests(tasks: Sequence[str], gaps: Sequence[float] | None = None) -> list[Visit]:
    found, now = [], 0.0
    for task, gap in zip(tasks, gaps or [SPARSE] * len(tasks), strict=False):
        found.append(Visit(task, now))
        now += gap
    return found


def comparison(bundle: Bundle, trace: list[Visit], spare: int = 5, order: Any = "grouped") -> RoutingComparison:
    simulator = Simulator(bundle)
    return RoutingComparison(
        simulator, trace, Device(simulator.largest_task + spare, STORAGE), ServerModel(0.02, order)
    )


def ways(found: RoutingComparison, replicas: int) -> list[Replay]:
    plain = [found.round_robin(replicas), found.affinity(replicas)]
    return [*plain, found.oracle(replicas, plain)]


@pytest.mark.slow
@given(lists, gaps, st.integers(1, 3), st.sampled_from(["grouped", "arrival"]))
@settings(max_examples=40)
def test_every_request_is_served_once_and_never_before_it_comes(
    drawn_bundle: Bundle, tasks: list[str], gaps: list[float], replicas: int, order: str
) -> None:
    trace = requests(tasks, gaps)
    for replay in ways(comparison(drawn_bundle, trace, order=order), replicas):
        served = [one for own in replay.served for one in own]
        assert sorted(one.request for one in served) == list(range(len(trace)))
        assert all(drawn_bundle.task_numbers[trace[one.request].task] == one.task for one in served)
        assert replay.waited.min() >= 0
        assert sum(replay.shares) == pytest.approx(1)
        assert len(replay.routes) == len(trace)


@pytest.mark.slow
@given(lists, gaps, st.sampled_from([0, 10, 60]))
@settings(max_examples=40)
def test_one_replica_loads_and_waits_as_the_simulator_of_one_engine(
    drawn_bundle: Bundle, tasks: list[str], gaps: list[float], spare: int
) -> None:
    """Page by page in any trace; second by second where requests never meet."""
    simulator = Simulator(drawn_bundle)
    device = Device(simulator.largest_task + spare, STORAGE)
    for apart in (None, gaps):
        trace = requests(tasks, apart)
        engine = simulator.run(trace, device, simulator.learner(STORAGE), prefetch=False)
        found = comparison(drawn_bundle, trace, spare, order="arrival")
        for replay in (found.round_robin(1), found.affinity(1)):
            (served,) = replay.served
            assert [one.pages for one in served] == [wait.pages for wait in engine.waits]
            if apart is None:
                assert replay.waited == pytest.approx([wait.seconds for wait in engine.waits], abs=1e-9)


@given(lists, gaps, st.integers(1, 3), st.sampled_from([0, 60]))
@settings(max_examples=40)
def test_who_knows_the_future_never_loads_more(
    drawn_bundle: Bundle, tasks: list[str], gaps: list[float], replicas: int, spare: int
) -> None:
    robin, affinity, oracle = ways(comparison(drawn_bundle, requests(tasks, gaps), spare, "arrival"), replicas)
    assert oracle.pages <= min(robin.pages, affinity.pages)


bursts = st.lists(st.tuples(st.sampled_from(TASKS), st.integers(2, 6)), min_size=25, max_size=40)


@pytest.mark.slow
@given(bursts, st.sampled_from([0, 20, 40, 80]))
@settings(max_examples=40)
def test_where_requests_of_a_task_follow_each_other_affinity_loads_no_more(
    drawn_bundle: Bundle, bursts: list[tuple[str, int]], spare: int
) -> None:
    """Each task comes twice in a row at least. Where tasks alternate in step with replicas, round robin is lucky."""
    trace = requests([task for task, length in bursts for _ in range(length)])
    robin, affinity, _ = ways(comparison(drawn_bundle, trace, spare), 2)
    assert affinity.pages <= robin.pages


def test_tasks_that_never_fit_together_get_a_replica_each(drawn_bundle: Bundle) -> None:
    """Two requests of each task in a row: round robin switches both replicas all the time, and affinity none."""
    trace = requests([TASKS[0], TASKS[0], TASKS[1], TASKS[1]] * 20)
    robin, affinity, oracle = ways(comparison(drawn_bundle, trace, spare=0), 2)
    assert robin.switches == 78
    assert affinity.switches <= 2
    assert 5 * affinity.pages <= robin.pages
    assert oracle.pages <= affinity.pages


def test_a_task_that_waits_already_is_not_lacked(drawn_bundle: Bundle) -> None:
    """Three requests of a task at once, before anything is loaded, don't load it twice."""
    trace = [Visit(TASKS[0], 0.0)] * 3
    simulator = Simulator(drawn_bundle)
    device = Device(simulator.all_pages, StorageModel(1e3, 0.0))
    affinity = RoutingComparison(simulator, trace, device, ServerModel(0.02)).affinity(2)
    assert affinity.pages == len(drawn_bundle.pages_of(TASKS[0]))


def test_tasks_that_share_pages_have_one_home() -> None:
    needs = [[0, 1, 2], [3, 4, 5], [0, 1, 6], [3, 4, 7]]
    search = TaskHomes([np.array(need) for need in needs], 8, 4, np.array([10, 9, 8, 7]))
    homes = search.search(2)
    assert homes[0] == homes[2] != homes[1] == homes[3]


class Watched:
    """A router that is told what real engines lack."""

    def __init__(self, router: Router, engines: Sequence[wp.Engine], tasks: Sequence[str]) -> None:
        self.router, self.engines = router, engines
        self.tasks = iter(tasks)

    def send(self) -> None:
        task = next(self.tasks)
        chosen = self.router.choose([self._view(engine, task) for engine in self.engines])
        InThread(lambda: self.engines[chosen].activate(task)).result()

    def _view(self, engine: wp.Engine, task: str) -> ReplicaView:
        blocks, size = engine.blocks, engine.bundle.page_bytes
        return ReplicaView(blocks.missing_count(engine.bundle.task_numbers[task]) * size, blocks.free * size, 0)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("way", ["round robin", "affinity"])
def test_real_engines_load_what_was_simulated(drawn_bundle: Bundle, replicas: int, way: str) -> None:
    """Requests one by one; the router looks at the engines themselves."""
    tasks = [TASKS[place * place % 11 % 6] for place in range(60)]
    found = comparison(drawn_bundle, requests(tasks))
    robin = way == "round robin"
    simulated = found.round_robin(replicas) if robin else found.affinity(replicas)
    slots = Simulator(drawn_bundle).largest_task + 5
    budget = footprint(drawn_bundle).total + slots * drawn_bundle.page_bytes
    with ExitStack() as opened:
        engines = [
            opened.enter_context(wp.Engine.from_pretrained(drawn_bundle.path, budget=budget)) for _ in range(replicas)
        ]
        router = RoundRobin() if robin else Affinity(replicas, 0.02 * STORAGE.bytes_per_second)
        watched = Watched(router, engines, tasks)
        for _ in tasks:
            watched.send()
        reports = [engine.report() for engine in engines]
    assert sum(report.bytes_read for report in reports) == simulated.pages * drawn_bundle.page_bytes
    switches = sum(one.from_task not in (None, one.to_task) for report in reports for one in report.switches)
    assert switches == simulated.switches


def test_the_command_compares_ways(assistant_bundle: Path, tmp_path: Path, weightpager: Callable[..., Any]) -> None:
    trace = tmp_path / "day.jsonl"
    lines = (json.dumps({"task": ("animal", "weather")[number // 2 % 2], "time": number / 10}) for number in range(40))
    trace.write_text("\n".join(lines))
    opened = Bundle.open(assistant_bundle)
    budget = footprint(opened).total + Simulator(opened).largest_task * opened.page_bytes
    arguments = "simulate", assistant_bundle, "--trace", trace, "--budget", budget, "--replicas", 2, "--compute", 5
    facts = json.loads(weightpager(*arguments, "--json").out)
    assert (facts["requests"], facts["replicas"]) == (40, 2)  # a task twice in a row is two requests
    assert [row["way"] for row in facts["routing"]] == ["round robin", "affinity", "oracle"]
    assert facts["routing"][0]["of_round_robin"] == 1.0
    assert set(facts["routing"][0]) == {
        "way", "switches", "bytes_loaded", "of_round_robin", "wait_p50_ms", "wait_p99_ms", "shares",
    }  # fmt: skip
    printed = weightpager(*arguments, "--quiet").out
    for words in ("40 requests, 2 replicas", "round robin", "affinity: a request goes to", "oracle: knows the whole"):
        assert words in printed
    assert "all pages fit into each" in weightpager("simulate", assistant_bundle, "--trace", trace, "--replicas", 2).out


def test_the_command_routes_a_trace_by_name(assistant_bundle: Path, weightpager: Callable[..., Any]) -> None:
    found = weightpager("simulate", assistant_bundle, "--trace", "robot", "--switches", 50, "--replicas", 3, "--json")
    facts = json.loads(found.out)
    assert facts["requests"] == 51
    assert all(len(row["shares"]) == 3 for row in facts["routing"])


def test_one_replica_is_one_engine(assistant_bundle: Path, weightpager: Callable[..., Any]) -> None:
    arguments = "simulate", assistant_bundle, "--trace", "robot", "--switches", 50, "--json"
    assert weightpager(*arguments, "--replicas", 1).out == weightpager(*arguments).out


def test_what_makes_no_sense_with_replicas_is_refused(
    assistant_bundle: Path, tmp_path: Path, weightpager: Callable[..., Any]
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    for arguments, words in (
        (("--trace", "robot", "--max-wait", 5), "it is about one engine"),
        (("--trace", tmp_path / "empty.jsonl"), "expected at least one request"),
        (("--trace", "robot", "--budget", "1KiB"), "smallest budget that would do"),
    ):
        found = weightpager("simulate", assistant_bundle, *arguments, "--replicas", 2)
        assert found.code != 0
        assert words in found.err

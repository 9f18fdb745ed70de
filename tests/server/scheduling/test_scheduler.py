"""The scheduler on a clock of its own: no threads, no engine."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.errors import ConfigError
from weightpager.server.scheduling.batching import Waiting
from weightpager.server.scheduling.scheduler import BatchPlan, Turn, next_batch, next_task
from weightpager.server.scheduling.settings import BatchLimits, Policy

BATCH, SWITCH = 0.05, 0.2


@dataclass(frozen=True)
class Run:
    """What became of a trace: when each request began, in the order of the trace, and how often the task changed."""

    trace: list[Waiting]
    began: list[float]
    switches: int
    heads: list[float]  # how long each task's oldest request had waited since it became the oldest

    @property
    def waits(self) -> list[float]:
        return sorted(begin - request.arrived for begin, request in zip(self.began, self.trace, strict=True))

    def p99(self) -> float:
        return self.waits[int(0.99 * (len(self.waits) - 1))]


def simulate(trace: list[Waiting], policy: Policy) -> Run:
    """Serve a trace, a batch taking ``BATCH`` seconds and a switch ``SWITCH``."""
    now, turn, switches, current = 0.0, Turn(), 0, None
    queue: list[int] = []
    coming = list(range(len(trace)))
    began = [0.0] * len(trace)
    oldest_since: dict[str, float] = {}
    heads = []
    while coming or queue:
        if not queue:
            now = max(now, trace[coming[0]].arrived)
        while coming and trace[coming[0]].arrived <= now:
            queue.append(coming.pop(0))
        waiting = [trace[number] for number in queue]
        for request in waiting:
            oldest_since.setdefault(request.task, request.arrived)
        plan = next_batch(waiting, turn, now, policy)
        if not plan.places:
            assert plan.again > now
            now = min(plan.again, trace[coming[0]].arrived if coming else plan.again)
            continue
        places = plan.places
        task = waiting[places[0]].task
        turn = turn.before(task, now, policy)
        start = now
        if task != current:
            switches, current = switches + 1, task
            now += SWITCH
        heads.append(now - oldest_since.pop(task))
        for place in places:
            began[queue[place]] = now
        now += BATCH
        queue = [number for place, number in enumerate(queue) if place not in places]
        for number in queue:
            if trace[number].task == task:
                oldest_since.setdefault(task, now)
        turn = turn.after(task, len(places), start, now)
    return Run(trace, began, switches, heads)


traces = st.lists(
    st.tuples(st.floats(0, 20), st.sampled_from("abcdef"), st.sampled_from([None, "x"])), min_size=1, max_size=120
).map(lambda rows: [Waiting(task, at, kind) for at, task, kind in sorted(rows, key=lambda row: row[0])])
policies = st.builds(
    Policy,
    patience=st.floats(0, 4),
    linger=st.floats(0, 4),
    turn=st.integers(1, 16),
    turn_seconds=st.floats(0, 2),
    batch=st.integers(1, 8),
)


@given(traces, policies)
def test_no_task_starves_beyond_the_bound(trace: list[Waiting], policy: Policy) -> None:
    # A task's head becomes its head when it arrives, or when a batch before it ends; patience counts from its arrival,
    # so that the bound holds from either.
    tasks = len({request.task for request in trace})
    assert max(simulate(trace, policy).heads) <= policy.longest_wait(tasks, BATCH, SWITCH) + 1e-9


@given(traces, policies)
def test_a_batch_is_of_one_task_and_kind_oldest_first(trace: list[Waiting], policy: Policy) -> None:
    found = list(next_batch(trace, Turn(), 100.0, policy).places)
    chosen = [trace[place] for place in found]
    assert 1 <= len(found) <= policy.batch
    assert len({(request.task, request.kind) for request in chosen}) == 1
    first = next(place for place, request in enumerate(trace) if request.task == chosen[0].task)
    assert found[0] == first
    assert found == sorted(found)


@given(traces, policies)
def test_within_a_task_and_kind_nobody_is_overtaken(trace: list[Waiting], policy: Policy) -> None:
    run = simulate(trace, policy)
    for key in {(request.task, request.kind) for request in trace}:
        times = [begin for begin, request in zip(run.began, trace, strict=True) if (request.task, request.kind) == key]
        assert times == sorted(times)


@given(traces)
def test_by_arrival_nobody_is_overtaken_at_all(trace: list[Waiting]) -> None:
    assert simulate(trace, Policy(order="arrival")).began == sorted(simulate(trace, Policy(order="arrival")).began)


def test_grouping_saves_switches_and_time() -> None:
    drawn = random.Random(7)
    at, trace = 0.0, []
    for _ in range(2000):
        at += drawn.expovariate(8)
        trace.append(Waiting(drawn.choice("abcdef"), at))
    grouped, first_come = simulate(trace, Policy(linger=2)), simulate(trace, Policy(order="arrival"))
    assert first_come.switches >= 3 * grouped.switches
    assert grouped.p99() < first_come.p99()


def test_the_current_task_goes_on_until_another_is_overdue() -> None:
    policy = Policy(patience=2, turn=4, turn_seconds=60)
    waiting = [Waiting("a", 0.0), Waiting("b", 0.5)]
    turn = Turn("b", since=0.0, served=3)
    assert next_task(waiting, turn, 1.0, policy) == "b"
    assert next_task(waiting, turn, 3.0, policy) == "b"  # its turn isn't over
    assert next_task(waiting, Turn("b", 0.0, served=4), 3.0, policy) == "a"
    assert next_task([waiting[1]], Turn("b", 0.0, served=4), 3.0, policy) == "b"


def test_a_task_that_is_in_memory_goes_before_one_that_is_not() -> None:
    waiting = [Waiting("a", 0.0), Waiting("b", 0.5), Waiting("c", 0.6)]
    assert next_task(waiting, Turn(), 1.0, Policy(patience=2), resident={"b", "c"}) == "b"
    assert next_task(waiting, Turn(), 2.0, Policy(patience=2), resident={"b", "c"}) == "a"


def test_of_overdue_tasks_the_one_served_longest_ago_goes_first() -> None:
    waiting = [Waiting("a", 0.0), Waiting("b", 0.1), Waiting("c", 0.2)]
    turn = Turn("z", served_at={"a": 9.0, "b": 5.0})
    assert next_task(waiting, turn, 10.0, Policy()) == "c"
    assert next_task(waiting[:2], turn, 10.0, Policy()) == "b"


def test_a_switch_that_loads_may_wait_for_more_requests() -> None:
    policy = Policy(patience=2, linger=1.5, batch=2)
    one, turn = [Waiting("a", 0.0)], Turn("b")
    assert next_batch(one, turn, 1.0, policy) == BatchPlan(again=1.5)
    assert next_batch(one, turn, 1.5, policy) == BatchPlan((0,))
    assert next_batch(one, turn, 1.0, policy, resident={"a"}) == BatchPlan((0,))
    assert next_batch(one, Turn("a"), 1.0, policy) == BatchPlan((0,))
    assert next_batch([*one, Waiting("a", 0.5)], turn, 1.0, policy) == BatchPlan((0, 1))


def test_a_full_batch_does_not_wait_for_a_task_that_lingers() -> None:
    policy = Policy(patience=2, linger=1.5, batch=2)
    alone, full = [Waiting("a", 0.0), Waiting("b", 0.1)], [Waiting("c", 0.2), Waiting("c", 0.3), Waiting("c", 0.4)]
    assert next_batch([*alone, *full], Turn(), 0.5, policy) == BatchPlan((2, 3))
    assert next_batch([*alone, *full], Turn(), 1.5, policy) == BatchPlan((0,))
    assert next_batch([*alone, full[0]], Turn(), 0.5, policy) == BatchPlan(again=1.5)


@given(st.text("abc", min_size=1, max_size=8), st.integers(1, 4))
def test_nothing_begins_only_where_nothing_would_if_each_task_were_alone(asked: str, batch: int) -> None:
    policy = Policy(patience=2, linger=1.5, batch=batch)  # at 1.0 no request has lingered for long enough
    waiting = [Waiting(task, number / 10) for number, task in enumerate(asked)]
    plan = next_batch(waiting, Turn(), 1.0, policy)
    alone = [next_batch([one for one in waiting if one.task == task], Turn(), 1.0, policy) for task in set(asked)]
    assert bool(plan.places) == any(other.places for other in alone)
    assert plan.again == (math.inf if plan.places else min(other.again for other in alone))


@given(traces, policies, st.integers(1, 30))
def test_a_batch_is_kept_within_its_room(trace: list[Waiting], policy: Policy, room: int) -> None:
    limits = BatchLimits(room=room)
    sized = [
        replace(request, prompt=1 + number % 12, new_tokens=number % 7, limits=limits)
        for number, request in enumerate(trace)
    ]
    for order in ("grouped", "arrival"):
        found = next_batch(sized, Turn(), 100.0, replace(policy, order=order)).places  # type: ignore[arg-type]
        batch = [sized[place] for place in found]
        each = max(request.prompt for request in batch) + max(request.new_tokens for request in batch)
        assert len(found) == 1 or len(found) * each <= room


@given(traces, policies, st.integers(18, 30))
def test_a_batch_is_kept_within_what_the_model_can_read(trace: list[Waiting], policy: Policy, context: int) -> None:
    sized = [
        replace(request, prompt=1 + 3 * number % 17, new_tokens=number % 13, limits=BatchLimits(context=context))
        for number, request in enumerate(trace)
    ]
    for order in ("grouped", "arrival"):
        found = next_batch(sized, Turn(), 100.0, replace(policy, order=order)).places  # type: ignore[arg-type]
        batch = [sized[place] for place in found]
        longest = max(request.prompt for request in batch) + max(request.new_tokens for request in batch)
        assert len(found) == 1 or longest <= context


@pytest.mark.parametrize("order", ["grouped", "arrival"])
def test_long_prompts_run_together_and_short_ones_as_far_as_that_does_not_change_them(order: str) -> None:
    policy = Policy(order=order)  # type: ignore[arg-type]
    limits = BatchLimits(context=100, uniform_length=10)
    for prompt, new_tokens, fit in ((5, 5, 3), (5, 6, 1), (11, 20, 3), (80, 21, 1)):
        waiting = [Waiting("task", number, prompt > 10, prompt, new_tokens, limits=limits) for number in range(3)]
        assert len(next_batch(waiting, Turn(), 100.0, policy).places) == fit


def test_nothing_waits() -> None:
    assert next_batch([], Turn(), 0.0, Policy()) == BatchPlan()


@pytest.mark.parametrize(
    "change", [{"patience": -1}, {"turn": 0}, {"batch": 0}, {"patience": float("nan")}, {"linger": 1e10}]
)
def test_a_policy_that_makes_no_sense_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Policy(**change)  # type: ignore[arg-type]

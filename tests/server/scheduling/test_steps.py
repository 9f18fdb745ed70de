"""Batches under way beside requests that wait: the scheduler on a clock of its own, no threads, no engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from weightpager.answers.model import PIECE, Activations
from weightpager.answers.work import Generate
from weightpager.readers.picture import Picture
from weightpager.server.scheduling.batching import HEAVY, Started, Waiting, beginnable, held, largest_batch
from weightpager.server.scheduling.job import Job
from weightpager.server.scheduling.scheduler import BatchPlan, Turn, next_batch, task_of
from weightpager.server.scheduling.settings import BatchLimits, Policy

STEP, SWITCH = 0.3, 0.2
TINY = Activations(per_token=1, per_pair=1)


@dataclass
class Ask:
    """A request that takes so many steps, and what became of it."""

    waiting: Waiting
    steps: int
    ahead: int = 0
    began: float | None = None
    ended: float | None = None


def simulate(asks: list[Ask], policy: Policy) -> tuple[list[Started], float]:
    """Serve requests, each step taking ``STEP`` seconds; all that was ever under way, and the most tokens held."""
    now, turn, current = 0.0, Turn(), None
    coming, queue = list(asks), list[Ask]()
    under: list[tuple[Started, list[Ask], int]] = []
    begun, most = list[Started](), 0.0
    while coming or queue or under:
        if not (queue or under):
            now = max(now, coming[0].waiting.arrived)
        while coming and coming[0].waiting.arrived <= now:
            new = coming.pop(0)
            own = new.waiting.task
            new.ahead = sum(ask.waiting.task == own for ask in queue) + sum(run.task == own for run, _, _ in under)
            queue.append(new)
        started = [run for run, _, _ in under]
        plan = next_batch([ask.waiting for ask in queue], turn, now, policy, started=started)
        assert plan.places or plan.run is not None, "somebody waits, and nothing is done"
        task = queue[plan.places[0]].waiting.task if plan.places else started[plan.run or 0].task
        turn = turn.before(task, now, policy)
        if task != current:
            current, now = task, now + SWITCH
        start = now
        if plan.places:
            batch = [queue[place] for place in plan.places]
            queue = [ask for ask in queue if ask not in batch]
            waiting = [ask.waiting for ask in batch]
            for ask in batch:
                ask.began = now
            run = Started(task, waiting[0].arrived, now, held(waiting), waiting[0].heavy)
            begun.append(run)
            left = max(ask.steps for ask in batch)
        else:
            run, batch, left = under.pop(plan.run or 0)
        now += STEP
        most = max(most, run.tokens + sum(other.tokens for other, _, _ in under))
        if left > 1:
            under.append((replace(run, ready=now), batch, left - 1))
        for ask in batch:
            if left == 1:
                ask.ended = now
        turn = turn.after(task, len(plan.places), start, now)
    return begun, most


def ask(row: tuple[float, str, int, int, bool]) -> Ask:
    at, task, prompt, steps, cached = row
    return Ask(Waiting(task, at, cached, prompt, 8 if cached else 0, cached), steps if cached else 1)


asked = st.lists(
    st.tuples(
        st.floats(0, 20), st.sampled_from("abcd"), st.sampled_from([1, 20, 300, 1000, 8000]), st.integers(1, 12),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
).map(lambda rows: [ask(row) for row in sorted(rows)])  # fmt: skip
policies = st.builds(
    Policy,
    patience=st.floats(0, 4),
    turn=st.integers(1, 16),
    turn_seconds=st.floats(0, 2),
    batch=st.integers(1, 8),
    runs=st.integers(1, 3),
)


# When a step of its own task, which has switched, is under way; and when a turn's time is short.
@example(
    [
        ask((0.0, "b", 1, 1, False)),
        ask((0.4, "a", 1, 1, False)),
        ask((0.6, "b", 1, 1, False)),
        ask((0.6, "a", 1, 1, False)),
    ],
    Policy(patience=0, turn=1, turn_seconds=0),
)
@example(
    [ask((0.0, task, 1, 1, False)) for task in "aaaabbb"],
    Policy(patience=0, turn=3, turn_seconds=0.75, batch=1, runs=1),
)
@given(asked, policies)
def test_nobody_waits_beyond_the_bound_whatever_the_others_ask_for(asks: list[Ask], policy: Policy) -> None:
    simulate(asks, policy)
    tasks = len({one.waiting.task for one in asks})
    for one in asks:
        assert one.began is not None
        assert one.ended is not None
        if not one.waiting.heavy:  # these wait for each other
            bound = policy.longest_wait(
                tasks, STEP, SWITCH, one.ahead, heavy=any(other.waiting.heavy for other in asks)
            )
            assert one.began - one.waiting.arrived <= bound + 1e-9


@given(asked, policies, st.integers(9000, 20_000))
def test_caches_hold_no_more_than_there_is_room_for_and_everybody_ends(
    asks: list[Ask], policy: Policy, room: int
) -> None:
    limits = BatchLimits(room=room)
    asks = [replace(ask, waiting=replace(ask.waiting, limits=limits)) for ask in asks]
    begun, most = simulate(asks, policy)
    assert most <= room
    assert all(one.ended is not None for one in asks)
    assert len(begun) <= len(asks)


def test_a_long_prompt_and_short_ones_take_turns() -> None:
    long, short = Ask(Waiting("a", 0.0, prompt=8000), 40), [Ask(Waiting("a", 0.1 * n, prompt=9), 1) for n in range(9)]
    simulate(sorted([long, *short], key=lambda one: one.waiting.arrived), Policy(batch=2))
    assert max(one.ended or 0.0 for one in short) < (long.ended or 0.0) / 2


def test_short_texts_of_another_task_pass_between_the_steps_of_heavy_prompts() -> None:
    heavy = [Ask(Waiting("a", 0.0, prompt=7900), 40) for _ in range(3)]
    short = [Ask(Waiting("b", 0.7 * n, prompt=9, cached=False), 1) for n in range(60)]
    simulate(sorted([*heavy, *short], key=lambda one: one.waiting.arrived), Policy())
    for one in short:
        assert one.began is not None
        # It comes when an earlier one has just been chosen, and the prompt has its next step before it.
        assert one.began - one.waiting.arrived <= 2 * STEP + 3 * SWITCH + 1e-9
    ended, alone = max(one.ended or 0.0 for one in heavy), sum(one.steps for one in heavy) * STEP
    assert ended <= alone + len(short) * (STEP + 2 * SWITCH) + SWITCH


def test_beside_a_heavy_prompt_each_task_has_its_share() -> None:
    heavy, short = Ask(Waiting("a", 0.0, prompt=7900), 40), [Ask(Waiting("b", 0.02 * n), 1) for n in range(900)]
    simulate(sorted([heavy, *short], key=lambda one: one.waiting.arrived), Policy(batch=1))
    assert (heavy.ended or 0.0) <= 2 * 40 * (STEP + SWITCH) + STEP + SWITCH


def test_of_heavy_prompts_one_batch_is_under_way_at_a_time() -> None:
    heavy = [Waiting("a", 0.0, prompt=HEAVY + 1), Waiting("b", 0.1, prompt=HEAVY + 1), Waiting("b", 0.2, prompt=5)]
    under = [Started("a", 0.0, 1.0, heavy=True)]
    assert beginnable(heavy, [], 100.0, Policy()) == [0, 1, 2]
    assert beginnable(heavy, under, 100.0, Policy()) == [2]


def test_a_task_has_so_many_batches_under_way_until_patience_is_lost() -> None:
    under = [Started("a", 0.0, 1.0), Started("a", 0.0, 1.0)]
    waiting = [Waiting("a", 1.0), Waiting("b", 1.0), Waiting("a", 1.0, cached=False)]
    assert beginnable(waiting, under, 2.0, Policy(patience=2, runs=2)) == [1, 2]
    assert beginnable(waiting, under, 3.0, Policy(patience=2, runs=2)) == [0, 1, 2]


def test_who_has_waited_long_for_room_is_not_overtaken_for_ever() -> None:
    under, policy, room = [Started("a", 0.0, 0.0, tokens=60)], Policy(patience=2), BatchLimits(room=100)
    sizes = [(0.0, 50, True), (0.1, 5, True), (0.2, 5, False)]
    waiting = [Waiting("a", at, prompt=size, cached=cached, limits=room) for at, size, cached in sizes]
    assert beginnable(waiting, under, 1.0, policy) == [1, 2]
    assert beginnable(waiting, under, 5.0, policy) == [2]
    assert beginnable(waiting, [], 5.0, policy) == [0, 1, 2]


def test_who_has_been_ready_for_longest_goes_first_in_its_task() -> None:
    policy, turn = Policy(), Turn("a")
    assert next_batch([Waiting("a", 1.0)], turn, 3.0, policy, started=[Started("a", 0.0, 2.0)]) == BatchPlan((0,))
    assert next_batch([Waiting("a", 2.5)], turn, 3.0, policy, started=[Started("a", 0.0, 2.0)]) == BatchPlan(run=0)
    assert next_batch([], turn, 3.0, policy, started=[Started("a", 0.0, 2.0), Started("a", 0.0, 1.0)]) == BatchPlan(
        run=1
    )
    by_arrival = Policy(order="arrival")
    assert next_batch([Waiting("b", 1.0)], turn, 3.0, by_arrival, started=[Started("a", 0.0, 2.0)]) == BatchPlan((0,))
    assert next_batch([Waiting("b", 2.5)], turn, 3.0, by_arrival, started=[Started("a", 0.0, 2.0)]) == BatchPlan(run=0)


def test_the_task_of_a_plan_is_that_of_its_step() -> None:
    waiting, started = [Waiting("a", 0.0), Waiting("b", 0.1)], [Started("c", 0.0, 1.0)]
    assert task_of(BatchPlan((1,)), waiting, started) == "b"
    assert task_of(BatchPlan(run=0), waiting, started) == "c"
    assert task_of(BatchPlan(again=2.0), waiting, started) is None


def test_nobody_lingers_beside_a_batch_that_is_ready() -> None:
    policy, turn, waiting = Policy(linger=1), Turn("b"), [Waiting("a", 1.0)]
    assert next_batch(waiting, turn, 1.5, policy) == BatchPlan(again=2.0)
    assert next_batch(waiting, turn, 1.5, policy, started=[Started("a", 0.0, 1.2)]) == BatchPlan((0,))


def test_texts_of_similar_length_run_together() -> None:
    lengths = [500, 3, 400, 9, 260, 1000]
    waiting = [Waiting("a", float(number), prompt=length) for number, length in enumerate(lengths)]
    assert largest_batch(waiting, range(6), [], Policy()) == (0, 2, 4)
    assert largest_batch(waiting[1:], range(5), [], Policy()) == (0, 2)  # 3 and 9: nothing beside the others' padding
    short = [Waiting("a", 0.0, prompt=length) for length in (2, 30, 11, PIECE // 8)]
    assert largest_batch(short, range(4), [], Policy()) == (0, 1, 2, 3)  # so few tokens that padding is no matter


def test_a_batch_holds_no_more_pictures_than_may_be_in_memory() -> None:
    counts = [7, 0, 8, 7, 1, 0]
    waiting = [Waiting("a", 0.0, prompt=20, pictures=pictures) for pictures in counts]
    assert largest_batch(waiting, range(6), [], Policy()) == (0, 1, 2, 4, 5)  # 16 of them


def test_a_job_has_the_pictures_of_its_prompt() -> None:
    entry: Any = SimpleNamespace(name="a")
    pictures = (Picture(bytes(32), lambda: np.zeros((3, 2, 2), np.float32), 1),) * 3
    jobs = [Job(entry, Generate((2, 3), 1, pictures=each), 0, 0.0, 1.0, print) for each in (pictures, ())]
    assert [(job.waiting.pictures, job.places) for job in jobs] == [(3, 3), (0, 1)]


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=40), st.integers(1, 8), st.booleans())
def test_a_batch_is_bounded_in_padding_tokens_and_memory(lengths: list[int], batch: int, cached: bool) -> None:
    wide = Activations(per_token=20_000, per_pair=64)
    limits = BatchLimits(activations=wide)
    waiting = [Waiting("a", 0.0, prompt=length, cached=cached, limits=limits) for length in lengths]
    found = largest_batch(waiting, range(len(lengths)), [], Policy(batch=batch))
    chosen = [lengths[place] for place in found]
    padded = len(chosen) * max(chosen)
    assert found[0] == 0
    assert len(found) <= batch
    assert padded <= 2 * PIECE or max(chosen) <= 2 * min(chosen)
    assert len(chosen) == 1 or cached or wide.fit(len(chosen), max(chosen), max(chosen))
    assert len(chosen) == 1 or padded <= 64 * PIECE


def test_images_are_kept_within_what_a_forward_may_read() -> None:
    waiting = [Waiting("a", 0.0, prompt=1024, cached=False, limits=BatchLimits(activations=TINY))] * 8
    assert len(largest_batch(waiting, range(8), [], Policy())) == 2

"""Routing by hand, and that it stays fair whatever comes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.errors import ConfigError
from weightpager.routing import Affinity, Fairness, ReplicaView, RoundRobin


def view(lacks: int = 0, queue: int = 0, free: int = 1000, *, eligible: bool = True) -> ReplicaView:
    return ReplicaView(lacks, free, queue, eligible)


OUT = view(eligible=False)
"""It lacks nothing, and has no queue: only that it isn't eligible speaks against it."""


def test_round_robin_takes_turns() -> None:
    router = RoundRobin()
    assert [router.choose([view(9), view(), view()]) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_round_robin_passes_over_who_isnt_eligible() -> None:
    router = RoundRobin()
    assert [router.choose([view(), OUT, view()]) for _ in range(3)] == [0, 2, 0]
    assert [router.choose([view(), view(), view()]) for _ in range(3)] == [1, 2, 0]
    assert router.choose([OUT, view(10**9, queue=99), OUT]) == 1


def test_affinity_passes_over_who_isnt_eligible() -> None:
    """Whatever the others lack, and however long their queues are."""
    router = Affinity(3, 10.0)
    assert [router.choose([OUT, view(10**9, queue=99), OUT]) for _ in range(100)] == [1] * 100
    assert router.choose([view(), view(), view()]) == 0


def test_those_that_arent_eligible_count_in_no_rule() -> None:
    slack = Affinity(3, 0.0, Fairness(slack=2))
    assert slack.choose([OUT, view(0, queue=5), view(100, queue=3)]) == 1  # by the shortest of their own queues
    share = Affinity(3, 10.0, Fairness(share=1.2))
    chosen = [share.choose([OUT, view(0), view(100)]) for _ in range(2000)]
    assert 0.55 <= chosen.count(1) / 2000 <= 0.65


def test_a_request_goes_where_least_has_to_be_loaded() -> None:
    assert Affinity(3, 10.0).choose([view(100), view(40), view(60)]) == 1


def test_what_has_to_go_for_it_counts_too() -> None:
    """40 bytes in place of 40 others cost more than 60 that there is room for."""
    assert Affinity(2, 10.0).choose([view(40, free=0), view(60)]) == 1
    assert Affinity(2, 10.0).choose([view(40, free=30), view(60)]) == 0


def test_a_request_in_the_queue_weighs_a_part_of_what_is_loaded_while_it_computes() -> None:
    half = Fairness(queue_weight=0.5)
    assert Affinity(2, 20.0, half).choose([view(queue=2), view(19)]) == 1
    assert Affinity(2, 20.0, half).choose([view(queue=2), view(21)]) == 0


def test_of_equal_costs_the_one_counts_that_had_the_fewest() -> None:
    router = Affinity(3, 10.0)
    assert [router.choose([view(50)] * 3) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_queue_that_is_too_long_gets_nothing_whatever_the_others_lack() -> None:
    router = Affinity(2, 0.0, Fairness(slack=2))
    assert router.choose([view(queue=3), view(10**9, queue=1)]) == 0
    assert router.choose([view(queue=4), view(10**9, queue=1)]) == 1


def test_a_replica_that_always_lacks_less_doesnt_get_everything() -> None:
    """As the first one that was ever used, while requests come one by one."""
    router = Affinity(2, 10.0, Fairness(share=1.2))
    chosen = [router.choose([view(0), view(100)]) for _ in range(2000)]
    assert 0.55 <= chosen.count(0) / 2000 <= 0.65


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slack": -1}, "slack"),
        ({"share": 0.9}, "share"),
        ({"share": float("nan")}, "share"),
        ({"window": 0}, "window"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Fairness(**settings)


settings_of = st.builds(Fairness, slack=st.integers(0, 6), share=st.floats(1, 3), window=st.integers(1, 300))
answered = st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 3), min_size=5, max_size=5)), max_size=200)


@given(st.integers(1, 5), settings_of, st.floats(0, 1e6), answered, st.randoms(use_true_random=False))
def test_no_queue_is_far_longer_than_the_average(
    replicas: int, fairness: Fairness, weight: float, arrivals: list[tuple[int, list[int]]], random: object
) -> None:
    """Whatever replicas lack, and however fast each of them answers."""
    router, queues, drawn = Affinity(replicas, weight, fairness), [0] * replicas, np.random.default_rng(1)
    for sent, done in arrivals:
        for _ in range(sent):
            lacks = drawn.integers(0, 10**9, replicas).tolist()
            under_way = sum(queues)
            chosen = router.choose([view(lack, queue) for lack, queue in zip(lacks, queues, strict=True)])
            queues[chosen] += 1
            assert queues[chosen] <= under_way / replicas + fairness.slack + 1
        queues = [max(0, queue - count) for queue, count in zip(queues, done, strict=False)]


@given(st.integers(2, 5), settings_of, st.integers(0, 4))
def test_no_replica_is_left_out_for_long(replicas: int, fairness: Fairness, favourite: int) -> None:
    """While requests come one by one, and one replica never lacks anything."""
    router = Affinity(replicas, 0.0, fairness)
    lacks = [0 if number == favourite % replicas else 10**6 * (number + 1) for number in range(replicas)]
    count = 3 * fairness.window + 50
    chosen = [router.choose([view(lack) for lack in lacks]) for _ in range(count)]
    most = fairness.share * min(count, fairness.window) / replicas + 2
    weights = (1 - 1 / fairness.window) ** np.arange(count)[::-1]
    for number in range(replicas):
        assert weights[np.array(chosen) == number].sum() <= most + 1e-6

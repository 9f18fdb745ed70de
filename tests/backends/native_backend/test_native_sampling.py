"""Tokens that are drawn by the native backend."""

from __future__ import annotations

import numpy as np
import pytest

from weightpager.answers.work import Sampling

pytest.importorskip("weightpager.kernels._native")

from weightpager.answers.decoding import Sampler


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-5])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_a_tiny_temperature_draws_the_likeliest_word(temperature: float, top_p: float) -> None:
    logits = np.array([[1, 7, 5, -np.inf], [-900, -800, -1000, -950], [3e38, 0, -3e38, 2]], np.float32)
    sampler = Sampler(Sampling(temperature, top_p, seed=0))
    for _ in range(20):
        assert sampler.draw(logits).tolist() == [1, 1, 0]


def drawn(seed: int | None) -> list[int]:
    sampler = Sampler(Sampling(1.0, 1.0, seed=seed))
    return [int(sampler.draw(np.zeros((1, 1000), np.float32))[0]) for _ in range(8)]


@pytest.mark.parametrize("seed", [-1, -(2**63), 0, 7, 2**63 - 1])
def test_every_seed_that_the_server_takes_draws_the_same_each_time(seed: int) -> None:
    assert drawn(seed) == drawn(seed) != drawn(seed + 1)


def test_seeds_draw_what_numpy_draws() -> None:
    points = np.random.default_rng(7).random(8)
    assert drawn(7) == (points * 1000).astype(int).tolist()


def test_words_that_are_equally_likely_are_all_drawn() -> None:
    sampler = Sampler(Sampling(1e-310, 1.0, seed=0))
    drawn = {int(sampler.draw(np.array([[3, 9, 9, 2]], np.float32))[0]) for _ in range(50)}
    assert drawn == {1, 2}

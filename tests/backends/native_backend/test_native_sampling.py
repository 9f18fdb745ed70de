"""Tokens that are drawn by the native backend."""

from __future__ import annotations

import numpy as np
import pytest

from weightpager.answers.work import Sampling

pytest.importorskip("weightpager.kernels._native")

from weightpager.backends.native.sampling import Sampler


@pytest.mark.parametrize("temperature", [5e-324, 1e-310, 1e-300, 1e-5])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_a_tiny_temperature_draws_the_likeliest_word(temperature: float, top_p: float) -> None:
    logits = np.array([[1, 7, 5, -np.inf], [-900, -800, -1000, -950], [3e38, 0, -3e38, 2]], np.float32)
    sampler = Sampler(Sampling(temperature, top_p, seed=0))
    for _ in range(20):
        assert sampler.draw(logits).tolist() == [1, 1, 0]


def test_words_that_are_equally_likely_are_all_drawn() -> None:
    sampler = Sampler(Sampling(1e-310, 1.0, seed=0))
    drawn = {int(sampler.draw(np.array([[3, 9, 9, 2]], np.float32))[0]) for _ in range(50)}
    assert drawn == {1, 2}

"""A module that takes more calls or memory than its weights justify is given up before it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from weightpager.nn.skeleton import calls_for, empty_on_meta

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("Bert", {"num_hidden_layers": 512}),
        ("DistilBert", {"n_layers": 512}),
        ("Albert", {"num_hidden_groups": 512}),
        ("Albert", {"inner_group_num": 512}),
        ("MobileBert", {"num_feedforward_networks": 512}),
        ("Swin", {"depths": [512, 512], "num_attention_heads": [2, 2]}),
    ],
)
def test_too_many_parts_are_given_up(family: str, change: dict[str, Any]) -> None:
    config = getattr(transformers, f"{family}Config")(**SIZES | change)
    with pytest.raises(ValueError, match="far more parts than it has weights"), empty_on_meta(calls_for(40)):
        getattr(transformers, f"{family}Model")(config)


def test_a_table_of_a_large_images_positions_is_not_filled() -> None:
    config = transformers.BeitConfig(image_size=4096, patch_size=4, use_absolute_position_embeddings=True)
    with pytest.raises(ValueError, match=r"asks for \d{10,} bytes"), empty_on_meta():
        transformers.BeitModel(config)


def test_a_wide_head_is_not_computed() -> None:
    config = transformers.LlamaConfig(**SIZES, num_hidden_layers=2, head_dim=2**30)
    with pytest.raises(ValueError, match=r"asks for \d{10,} bytes"), empty_on_meta():
        transformers.LlamaModel(config)


@pytest.mark.slow
def test_what_is_computed_piece_by_piece_is_added_up() -> None:
    with pytest.raises(ValueError, match="bytes beside its weights"), empty_on_meta():
        for _ in range(100):
            torch.zeros(2**26 - 1)


def test_views_and_weights_cost_nothing() -> None:
    with empty_on_meta():
        layer = nn.Linear(2**20, 2**20)
        seen = torch.zeros(1).expand(2**40).view(2**20, 2**20)
        frequencies = 1.0 / (10_000 ** (torch.arange(0, 64, 2) / 64))
    assert layer.weight.is_meta
    assert seen.shape == layer.weight.shape
    assert not frequencies.is_meta
    assert frequencies[1] < frequencies[0]


def test_what_has_memory_gets_its_first_values_and_nothing_else_does() -> None:
    with empty_on_meta():
        wide = nn.init.normal_(torch.empty(2**20, 2**20))
        ones, noise = nn.init.ones_(torch.zeros(3)), nn.init.normal_(torch.zeros(100))
        assert torch.empty(2).zero_().fill_(1.0).uniform_().is_meta
    assert wide.is_meta
    assert wide.shape == (2**20, 2**20)
    assert ones.tolist() == [1, 1, 1]
    assert 0 < noise.std() < 2


def test_wherever_it_is_given_up_gradients_are_noted_as_before() -> None:
    for most in range(60):
        with pytest.raises(ValueError, match="far more parts"), empty_on_meta(most):
            nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Embedding(3, 2)) for _ in range(60)))
        assert torch.is_grad_enabled(), most

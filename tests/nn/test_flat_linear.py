from __future__ import annotations

from pathlib import Path

import torch

import weightpager as wp
from weightpager.nn.linear import FlatLinear


def test_a_slice_gives_what_the_layer_gives_its_copy() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 5)
    flat = FlatLinear.of(layer)
    assert flat.weight is layer.weight
    x = torch.randn(2, 7, 8)
    for piece in (x, x[:, -1:], x[:1, -1:], x[0, 0]):
        torch.testing.assert_close(flat(piece), layer(piece.contiguous()))


def test_a_decoders_head_is_flat_and_still_tied(writer_bundle: Path) -> None:
    task = next(iter(wp.Bundle.open(writer_bundle).tasks))
    with wp.Engine.from_pretrained(writer_bundle) as engine, engine.task(task) as model:
        assert isinstance(model.lm_head, FlatLinear)
        if model.config.tie_word_embeddings:
            assert model.lm_head.weight is model.get_input_embeddings().weight

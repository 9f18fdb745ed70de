"""Bundles of random weights open and run like compiled ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

import weightpager as wp
from weightpager.blocks import BlockShape
from weightpager.lab.synthetic_bundle import Recipe, bundle_of
from weightpager.page_dtype import PageDtype


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_a_synthetic_bundle_runs(dtype: PageDtype, tmp_path: Path) -> None:
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=32,
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )
    recipe = Recipe("tiny", config, BlockShape(8, 16), tasks=2, density=0.5, common=0.4).stored_in(dtype)
    bundle = bundle_of(recipe, tmp_path, lambda _: None)
    assert bundle.manifest.dtype == dtype
    with wp.Engine.from_pretrained(bundle.path) as engine, torch.inference_mode():
        for task in bundle.tasks:
            found = engine.activate(task)(input_ids=torch.tensor([[1, 2, 3]])).logits
            assert found.isfinite().all()

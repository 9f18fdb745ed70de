"""A bundle of many pages, made up: what is loaded doesn't depend on what a training chose."""

from __future__ import annotations

import pytest

from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle


@pytest.fixture(scope="session")
def drawn_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Six tasks that keep three of twelve groups of blocks in each of four layers, one of these in common."""
    from transformers import Qwen2Config

    from weightpager_lab.synthetic_bundle import Recipe, bundle_of

    config = Qwen2Config(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    recipe = Recipe("drawn", config, BlockShape(16, 32), 6, 0.25, 0.4, page_bytes=4096, groups=12)
    return bundle_of(recipe, tmp_path_factory.mktemp("drawn"), print)

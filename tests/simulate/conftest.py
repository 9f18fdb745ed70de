"""Bundles that are made up: what is loaded doesn't depend on what a training chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle


def drawn(folder: Path, name: str, tasks: int, page_bytes: int, *, width: int = 64, layers: int = 4) -> Bundle:
    """Tasks that keep three of twelve groups of blocks in each layer, one of these in common."""
    from transformers import Qwen2Config

    from weightpager_lab.synthetic_bundle import Recipe, bundle_of

    config = Qwen2Config(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    recipe = Recipe(name, config, BlockShape(16, 32), tasks, 0.25, 0.4, page_bytes=page_bytes, groups=12)
    return bundle_of(recipe, folder, print)


@pytest.fixture(scope="session")
def drawn_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Six tasks on many pages."""
    return drawn(tmp_path_factory.mktemp("drawn"), "drawn", 6, 4096, width=128)


@pytest.fixture(scope="session")
def drawn_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three bundles of different page sizes, whose tasks have the same names but for one. They have no rows on demand:
    what is read of these depends on texts."""
    folder = tmp_path_factory.mktemp("several")
    sizes = {"small": (3, 4096), "middle": (4, 8192), "large": (3, 12288)}
    made = {name: drawn(folder, name, *size).path for name, size in sizes.items()}
    return [path.rename(folder / f"{name}.bundle") for name, path in made.items()]

"""A model that reads pictures among its words, from its task file to a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_llava
import weightpager as wp


@pytest.mark.parametrize("tower", tiny_llava.TOWERS)
@pytest.mark.parametrize("language", tiny_llava.LANGUAGES)
def test_each_tower_before_each_language_model_becomes_a_bundle(
    tmp_path: Path, tower: tiny_llava.TowerName, language: tiny_llava.LanguageName
) -> None:
    model = tiny_llava.llava(tmp_path / "llava", tower, language)
    bundle = wp.compile(tiny_llava.watcher(tmp_path, pictures=False, model=str(model)), out=tmp_path / "bundle")
    assert bundle.pictures is not None
    assert bundle.pictures.plain() == {
        "blocks": "shared", "layers": 2, "token": "<image>", "token_id": 16, "tokens": 4, "width": 48,
    }  # fmt: skip
    weights = bundle.manifest.weights
    assert {weight.layer for weight in weights if "vision_tower" in weight.name} == {0, 1}
    assert {weight.layer for weight in weights if "language_model" in weight.name} == {2, 3}

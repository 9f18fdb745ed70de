"""Architectures that nothing here knows by name: compiled, run, and equal to what they are exported as; marked slow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

import tiny
import weightpager as wp
from families import DECODERS, ENCODERS, IMAGES
from weightpager.backends.torch.export import export_task
from weightpager.bundle import Bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def built(family: str, config: Mapping[str, Any], suffix: str, folder: Path) -> PretrainedConfig:
    """Save a model of random weights; its configuration."""
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    torch.manual_seed(0)
    made: PretrainedConfig = getattr(transformers, f"{family}Config")(**config)
    name = {"GPT2ForCausalLM": "GPT2LMHeadModel"}.get(f"{family}{suffix}", f"{family}{suffix}")
    getattr(transformers, name)(made).save_pretrained(folder)
    return made


@pytest.fixture(autouse=True)
def _no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules are compared here; of graphs of all these architectures there are tests of their own."""
    monkeypatch.setattr("weightpager.compiler.graph.export._exported", lambda *_: "not asked for")


def check(content: dict[str, Any], auto: Any, inputs: dict[str, Any], folder: Path, tolerance: float = 1e-4) -> None:
    """Compile, and compare the first task with its exported model."""
    content |= {"training": {"steps": 2, "batch": 8}, "compare": "none"}
    content["tasks"] = dict(list(content["tasks"].items())[:2])
    wp.compile(content, out=folder / "a.bundle")
    bundle = Bundle.open(folder / "a.bundle")
    task = next(iter(bundle.tasks))
    exported = auto.from_pretrained(export_task(bundle, task, folder / "exported")).eval()
    with wp.Engine.from_pretrained(bundle.path) as engine, engine.task(task) as module, torch.inference_mode():
        found, expected = module(**inputs).logits, exported(**inputs).logits
    assert float(expected.norm()) > 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 10)
    with (
        wp.Engine.from_pretrained(bundle.path, dtype="bfloat16") as engine,
        engine.task(task) as module,
        torch.inference_mode(),
    ):
        assert module(**inputs).logits.isfinite().all()


TEXT = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders(family: str, tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path)
    built(family, ENCODERS[family], "Model", Path(content["model"]))
    check(content, AutoModelForSequenceClassification, TEXT, tmp_path)


@pytest.mark.parametrize("family", DECODERS)
def test_decoders(family: str, tmp_path: Path) -> None:
    content = tiny.writer(tmp_path)
    built(family, DECODERS[family], "ForCausalLM", Path(content["model"]))
    check(content, AutoModelForCausalLM, TEXT, tmp_path)


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_whose_head_is_tied(family: str, tmp_path: Path) -> None:
    """Beside pages of few bits their tables are blocks, but for those that a family scales by itself."""
    content = tiny.writer(tmp_path, dtype="int8")
    built(family, {**DECODERS[family], "tie_word_embeddings": True}, "ForCausalLM", Path(content["model"]))
    check(content, AutoModelForCausalLM, TEXT, tmp_path, tolerance=1e-3)
    tied = Bundle.open(tmp_path / "a.bundle").manifest.whole_weights
    assert [table.dtype for table in tied] == ([] if family == "Gemma2" else ["int8"])


@pytest.mark.parametrize("family", IMAGES)
def test_models_of_images(family: str, tmp_path: Path) -> None:
    content = tiny.camera(tmp_path)
    built(family, IMAGES[family], "Model", Path(content["model"]))
    check(content, AutoModelForImageClassification, {"pixel_values": torch.randn(1, 3, 16, 16)}, tmp_path)

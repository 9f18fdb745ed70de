"""Tensors that a model uses under several names: stored once, listed, and computed with as in the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AlbertConfig, AlbertModel

import tiny
import weightpager as wp
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler import task_file
from weightpager.compiler.model import dense_model
from weightpager.compiler.model.paged_weights import sort_weights, tied_tensors


@pytest.mark.slow
def test_layers_run_several_times_are_paged_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AlbertConfig(
        vocab_size=16,
        embedding_size=16,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=64,
    )
    AlbertModel(config).save_pretrained(tmp_path / "albert")
    tiny.tokenizer().save_pretrained(tmp_path / "albert")
    content = {
        "model": str(tmp_path / "albert"),
        "block": "8x16",
        "sparsity": 0.0,
        "dtype": "float32",
        "calibration": {"items": 8, "max_length": 16, "batch": 8},
        "training": {"steps": 2, "batch": 4},
        "tasks": {"animal": tiny.classification(tmp_path, "animal", {"cat": ["cat"], "dog": ["dog"]}, items=16)},
    }
    bundle = wp.compile(content, tmp_path / "a.bundle")
    assert {entry.layer for entry in bundle.manifest.weights} == {0}
    assert len(bundle.manifest.weights) == 6
    (score,) = read_report(bundle).tasks
    assert score.dense == score.sparse


@pytest.mark.slow
def test_a_tied_head_is_listed(tmp_path: Path) -> None:
    bundle = wp.compile(tiny.writer(tmp_path), tmp_path / "a.bundle")
    assert read_report(bundle).tied == {"base_model.embed_tokens.weight": ["lm_head.weight"]}


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_a_weight_of_two_layers_is_resident_under_both_names(tmp_path: Path) -> None:
    file = task_file.from_dict(tiny.assistant(tmp_path))
    models = dense_model.load(file).models
    for model in models.values():
        first, second = (model.base_model.encoder.layer[number].output.dense for number in (0, 1))
        second.weight = first.weight
    paged, resident = sort_weights(models, file.block, file.model)
    name = "base_model.encoder.layer.{}.output.dense.weight"
    assert resident[name.format(0)] == "tied to " + name.format(1)
    assert not {info.name + ".weight" for info in paged} & {name.format(0), name.format(1)}
    assert tied_tensors(models["animal"]) == {name.format(0): [name.format(1)]}

"""Low-rank parts that a compile trains: where they lie, and what the engine computes with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_manifest
from weightpager.backends.torch.export import dense_weights, export_task
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.bundle.format.names import private_file
from weightpager.errors import BundleFormatError, CompileError, ConfigError
from weightpager.nn.linear import PagedLinear
from weightpager.store.block_reader import read_low_rank

INPUTS = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
RECOVER = {"method": "finetune", "steps": 4, "batch": 8, "private_steps": 6, "low_rank": 2}


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    wp.compile(tiny.assistant(folder, recover=RECOVER), out=folder / "a.bundle")
    return folder / "a.bundle"


def test_parts_lie_in_low_rank_pages(adapted: Path) -> None:
    bundle = Bundle.open(adapted)
    parts = read_low_rank(bundle, "animal")
    assert set(parts) == {weight.name for weight in bundle.manifest.weights}
    assert parts["base_model.encoder.layer.1.intermediate.dense"].down.shape == (2, 64)
    assert parts["base_model.encoder.layer.1.intermediate.dense"].up.shape == (100, 2)
    assert all(np.abs(part.up).max() > 0 for part in parts.values())  # they were trained
    own = set(bundle.low_rank_pages("animal").tolist())
    assert own <= set(bundle.pages_of("animal").tolist())
    assert not own & set(bundle.pages_of("weather").tolist())


def test_a_paged_layer_gives_masked_weight_and_low_rank_part(adapted: Path) -> None:
    bundle = Bundle.open(adapted)
    parts, dense = read_low_rank(bundle, "animal"), dense_weights(bundle, "animal")
    with wp.Engine.from_pretrained(adapted) as engine, engine.task("animal") as module, torch.inference_mode():
        for entry in bundle.manifest.weights:
            layer = module.get_submodule(entry.name.replace("base_model.", "bert.", 1))
            x = torch.randn(5, entry.in_features)
            part = parts[entry.name]
            weight = dense[entry.name].float() + torch.from_numpy(part.up @ part.down)
            expected = torch.nn.functional.linear(x, weight, layer.bias)
            torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
            halves = layer(x.bfloat16())
            assert halves.dtype == torch.bfloat16
            without = torch.nn.functional.linear(x, dense[entry.name].float(), layer.bias)
            added = x @ torch.from_numpy(part.down).T @ torch.from_numpy(part.up).T
            torch.testing.assert_close(layer(x) - without, added, rtol=1e-4, atol=1e-4)


def test_the_export_has_them_merged(adapted: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    out = export_task(Bundle.open(adapted), "animal", tmp_path / "out")
    exported = AutoModelForSequenceClassification.from_pretrained(out).eval()
    with wp.Engine.from_pretrained(adapted) as engine, engine.task("animal") as module, torch.inference_mode():
        ours = module(**INPUTS).logits
        torch.testing.assert_close(ours, exported(**INPUTS).logits, rtol=1e-3, atol=1e-3)
        for layer in module.modules():
            if isinstance(layer, PagedLinear):
                layer.low_rank = None
        assert not torch.allclose(ours, module(**INPUTS).logits, atol=1e-3)


def test_they_take_memory_while_their_task_is_in_use(adapted: Path) -> None:
    bundle = Bundle.open(adapted)
    heads = sum(bundle.entry(private_file(task)).bytes for task in bundle.tasks)
    assert footprint(bundle).private == heads
    with wp.Engine.from_pretrained(adapted) as engine, engine.task("animal"):
        memory = engine.report().memory
        assert memory.private == heads
        assert memory.arena >= len(bundle.pages_of("animal")) * bundle.page_bytes


def test_without_the_setting_there_are_none(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    assert read_low_rank(bundle, "animal") == {}
    assert bundle.low_rank_bytes("animal") == 0


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_parts_in_files_as_older_bundles_have_them_are_refused(adapted: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(adapted, tmp_path / "copy.bundle"))
    private, added = private_file("animal"), f"tasks/animal/{name}"
    shutil.copy(copy / private, copy / added)
    rewrite_manifest(copy, lambda manifest: manifest["files"].update({added: manifest["files"][private]}))
    with pytest.raises(BundleFormatError, match=f"files: expected private parameters alone in tasks/, found .*{name}"):
        Bundle.open(copy)
    assert any(name in problem for problem in verify(copy).problems)


def test_a_setting_that_nothing_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recover\.low_rank: expected 0, or method finetune"):
        wp.compile(tiny.assistant(tmp_path, recover={"method": "closed-form", "low_rank": 2}), out=tmp_path / "a")
    with pytest.raises(ConfigError, match=r"recover\.private_blocks: expected 0, or method finetune"):
        wp.compile(tiny.assistant(tmp_path, recover={"method": "none", "private_blocks": 0.1}), out=tmp_path / "a")
    with pytest.raises(CompileError, match=r"recover\.low_rank: expected at most the rank of .*; found 65"):
        wp.compile(tiny.assistant(tmp_path, recover=RECOVER | {"low_rank": 65}), out=tmp_path / "a")

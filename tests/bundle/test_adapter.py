"""Low-rank parts: their pages, what the engine computes with them, and older bundles' files, hostile ones too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import weightpager as wp
from adapter_files import with_adapter_files
from benchmarks.fuzz.sealing import remove_file, rewrite_arrays, rewrite_file
from weightpager.backends.torch.export import dense_weights, export_task
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.adapter import adapter_bytes, low_rank_bytes, read_adapter
from weightpager.bundle.footprint import footprint
from weightpager.bundle.format.names import adapter_files, private_file
from weightpager.errors import BundleFormatError, CompileError, ConfigError
from weightpager.nn.linear import PagedLinear
from weightpager.store.block_reader import read_low_rank

INPUTS = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
RECOVER = {"method": "finetune", "steps": 4, "batch": 8, "private_steps": 6, "low_rank": 2}
CONFIG, TENSORS = adapter_files("animal")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    wp.compile(tiny.assistant(folder, recover=RECOVER), out=folder / "a.bundle")
    return folder / "a.bundle"


@pytest.fixture(scope="module")
def older(adapted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same bundle, as version 2 has it."""
    return with_adapter_files(shutil.copytree(adapted, tmp_path_factory.mktemp("older") / "a.bundle"), "bert")


@pytest.fixture
def copy(older: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(older, tmp_path / "copy.bundle"))


def change_config(bundle: Path, **changes: Any) -> None:
    content = json.loads((bundle / CONFIG).read_bytes()) | changes
    rewrite_file(bundle, CONFIG, json.dumps(content).encode())


def change_tensors(bundle: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    rewrite_arrays(bundle, TENSORS, change)


def refused(bundle: Path) -> str:
    with pytest.raises(BundleFormatError) as error, wp.Engine.from_pretrained(bundle):
        pass
    assert error.value.plain in verify(bundle).problems
    return str(error.value)


def test_parts_lie_in_low_rank_pages(adapted: Path) -> None:
    bundle = Bundle.open(adapted)
    assert not list(adapted.rglob("adapter*"))
    parts = read_low_rank(bundle, "animal")
    assert set(parts) == {weight.name for weight in bundle.manifest.weights}
    assert parts["base_model.encoder.layer.1.intermediate.dense"].down.shape == (2, 64)
    assert parts["base_model.encoder.layer.1.intermediate.dense"].up.shape == (100, 2)
    assert all(np.abs(part.up).max() > 0 for part in parts.values())  # they were trained
    own = set(bundle.low_rank_pages("animal").tolist())
    assert own <= set(bundle.pages_of("animal").tolist())
    assert not own & set(bundle.pages_of("weather").tolist())


def test_older_bundles_have_them_in_pefts_files(adapted: Path, older: Path) -> None:
    bundle, now = Bundle.open(older), Bundle.open(adapted)
    assert (bundle.manifest.version, now.manifest.version) == (2, 3)
    assert not len(bundle.low_rank_pages("animal"))
    parts, wanted = read_low_rank(bundle, "animal"), read_low_rank(now, "animal")
    for name, part in parts.items():
        np.testing.assert_array_equal(part.down, wanted[name].down)
        np.testing.assert_array_equal(part.up, wanted[name].up)
    with wp.Engine.from_pretrained(older) as old, wp.Engine.from_pretrained(adapted) as new, torch.inference_mode():
        with old.task("animal") as a, new.task("animal") as b:
            torch.testing.assert_close(a(**INPUTS).logits, b(**INPUTS).logits, rtol=1e-3, atol=1e-3)
        assert old.report().memory.private > new.report().memory.private


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


def test_a_scaling_is_applied(copy: Path) -> None:
    before = read_adapter(Bundle.open(copy), "animal")
    change_config(copy, lora_alpha=6.0)
    after = read_adapter(Bundle.open(copy), "animal")
    for name, part in before.items():
        np.testing.assert_allclose(after[name].up, 3 * part.up, rtol=1e-6)
        np.testing.assert_array_equal(after[name].down, part.down)


def test_they_take_memory_while_their_task_is_in_use(adapted: Path, older: Path) -> None:
    bundle, old = Bundle.open(adapted), Bundle.open(older)
    heads = sum(bundle.entry(private_file(task)).bytes for task in bundle.tasks)
    assert footprint(bundle).private == heads
    assert footprint(old).private == heads + sum(adapter_bytes(old, task) for task in old.tasks)
    with wp.Engine.from_pretrained(adapted) as engine, engine.task("animal"):
        memory = engine.report().memory
        assert memory.private == heads
        assert memory.arena >= len(bundle.pages_of("animal")) * bundle.page_bytes


def test_a_flipped_bit_is_found(copy: Path) -> None:
    assert verify(copy).problems == ()
    for name in (CONFIG, TENSORS):
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert any(name in problem and "BLAKE3" in problem for problem in verify(copy).problems)
        (copy / name).write_bytes(content)


def test_without_the_setting_there_are_none(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    assert read_low_rank(bundle, "animal") == {}
    assert low_rank_bytes(bundle, "animal") == 0
    assert not list(assistant_bundle.rglob("adapter*"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"task_type": "TOKEN_CLS"}, "task_type"),
        ({"task_type": "CAUSAL_LM"}, "task_type"),
        ({"r": 0}, "r: "),
        ({"r": 3}, "lora_A.weight"),
        ({"r": 1 << 40}, "r: "),
        ({"lora_alpha": 0.0}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"bias": "all"}, "bias"),
        ({"use_dora": True}, "use_dora"),
        ({"auto_mapping": {}}, "auto_mapping"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["bert.pooler.dense"]}, "target_modules"),
        ({"target_modules": ["bert.encoder.layer.0.output.dense"] * 2}, "target_modules"),
        ({"target_modules": ["bert.encoder.layer.0.output.dense"]}, "base_model.model.bert"),
    ],
)
def test_a_hostile_configuration_is_refused(copy: Path, changes: dict[str, Any], field: str) -> None:
    change_config(copy, **changes)
    message = refused(copy)
    assert field in message
    assert "tasks/animal/adapter_" in message


KEY = "base_model.model.bert.encoder.layer.0.output.dense.lora_B.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop(KEY),
        lambda arrays: arrays.update({KEY: arrays[KEY].T.copy()}),
        lambda arrays: arrays.update({KEY: arrays[KEY][:-1]}),
        lambda arrays: arrays.update({KEY: arrays[KEY].astype(np.float64)}),
        lambda arrays: arrays.update({KEY: arrays[KEY] * np.float32(np.nan)}),
        lambda arrays: arrays.update({KEY: np.zeros(0, np.float32)}),
    ],
)
def test_hostile_tensors_are_refused(copy: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    change_tensors(copy, change)
    message = refused(copy)
    assert TENSORS in message
    assert KEY in message


def test_one_file_without_the_other_is_refused(copy: Path) -> None:
    remove_file(copy, TENSORS)
    with pytest.raises(BundleFormatError, match=TENSORS):
        wp.Engine.from_pretrained(copy)


def test_rubbish_is_refused(copy: Path) -> None:
    rewrite_file(copy, TENSORS, b"\xff" * 64)
    assert TENSORS in refused(copy)
    rewrite_file(copy, CONFIG, b"[")
    assert CONFIG in refused(copy)


def test_a_setting_that_nothing_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recover\.low_rank: expected 0, or method finetune"):
        wp.compile(tiny.assistant(tmp_path, recover={"method": "closed-form", "low_rank": 2}), out=tmp_path / "a")
    with pytest.raises(ConfigError, match=r"recover\.private_blocks: expected 0, or method finetune"):
        wp.compile(tiny.assistant(tmp_path, recover={"method": "none", "private_blocks": 0.1}), out=tmp_path / "a")
    with pytest.raises(CompileError, match=r"recover\.low_rank: expected at most the rank of .*; found 65"):
        wp.compile(tiny.assistant(tmp_path, recover=RECOVER | {"low_rank": 65}), out=tmp_path / "a")

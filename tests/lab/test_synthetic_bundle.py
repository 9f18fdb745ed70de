"""Bundles of random weights open and run like compiled ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

import weightpager as wp
from weightpager.blocks import BlockShape
from weightpager.bundle.report.page_statistics import mean_overlap, overlap
from weightpager.page_dtype import PageDtype
from weightpager_lab import synthetic_bundle
from weightpager_lab.companions import COMPANIONS, check
from weightpager_lab.synthetic_bundle import Recipe, bundle_of, companions_of


def tiny() -> Recipe:
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
    return Recipe("tiny", config, BlockShape(8, 16), tasks=2, density=0.5, common=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_a_synthetic_bundle_runs(dtype: PageDtype, tmp_path: Path) -> None:
    bundle = bundle_of(tiny().stored_in(dtype), tmp_path, lambda _: None)
    assert bundle.manifest.dtype == dtype
    with wp.Engine.from_pretrained(bundle.path) as engine, torch.inference_mode():
        for task in bundle.tasks:
            found = engine.activate(task)(input_ids=torch.tensor([[1, 2, 3]])).logits
            assert found.isfinite().all()


@pytest.mark.slow
def test_companions_have_the_same_tasks_and_other_blocks(tmp_path: Path) -> None:
    bundle = bundle_of(tiny().stored_in("int4"), tmp_path, lambda _: None)
    companions = companions_of(tiny(), tmp_path, lambda _: None, "int4")
    assert list(companions) == list(COMPANIONS)
    check(bundle, companions)
    kept = {
        name: {len(each.kept_locations(task)) * each.block_bytes / each.dense_bytes for task in each.tasks}
        for name, each in companions.items()
    }
    assert kept == {"unaligned": {0.5}, "all_blocks": {1.0}, "one_mask": {0.5}}
    overlaps = {name: mean_overlap(overlap(each)) for name, each in companions.items()}
    assert overlaps["all_blocks"] == overlaps["one_mask"] == 1
    assert overlaps["unaligned"] < mean_overlap(overlap(bundle))
    with wp.Engine.from_pretrained(companions["one_mask"].path) as engine:
        for task in bundle.tasks:
            engine.activate(task)
        assert [switch.bytes for switch in engine.report().switches[1:]] == [0]


@pytest.mark.slow
def test_one_that_another_process_has_written_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = synthetic_bundle.source_of

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(synthetic_bundle, "source_of", source)
        bundle_of(tiny(), tmp_path, lambda _: None)
        return source(*arguments)

    monkeypatch.setattr(synthetic_bundle, "source_of", overtaken)
    bundle = bundle_of(tiny(), tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == [bundle.path]

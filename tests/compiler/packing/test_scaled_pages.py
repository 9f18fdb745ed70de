"""Bundles whose pages hold int8 or int4: the same values through every path that reads or writes a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

import tiny
import weightpager as wp
from weightpager.backends.torch.export import dense_weights, export_task
from weightpager.backends.verify import verify
from weightpager.blocks import BlockGrid
from weightpager.bundle import Bundle
from weightpager.compiler.repack import PageSize, repack
from weightpager.page_dtype import decode, encode

INPUTS = {"input_ids": torch.tensor([[2, 5, 9, 11, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}


def pet(folder: Path) -> dict[str, Any]:
    content = tiny.assistant(folder)
    del content["block"], content["page"], content["dtype"]
    content["tasks"] = {"pet": tiny.classification(folder, "pet", {"cat": ["cat"], "dog": ["dog"], "cow": ["cow"]})}
    return content


def outputs(bundle: Bundle) -> dict[str, torch.Tensor]:
    with wp.Engine.from_pretrained(bundle.path) as engine:
        found = {}
        for task in bundle.tasks:
            with engine.task(task) as module, torch.inference_mode():
                found[task] = module(**INPUTS).logits
        return found


@pytest.fixture(scope="module", params=["int8", "int4"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp(request.param)
    return wp.compile(tiny.assistant(folder, dtype=request.param), out=folder / "pages.bundle")


def rounded(grid: BlockGrid, weight: torch.Tensor, dtype: str) -> torch.Tensor:
    cut = grid.cut(weight.numpy())  # [rows, cols, BH, BW]
    coded = encode(cut.reshape(-1, *cut.shape[2:]), dtype)
    return torch.from_numpy(grid.join(decode(coded, grid.block, dtype).reshape(cut.shape)))


@pytest.mark.slow
def test_pages_hold_the_values_as_they_are_rounded(bundle: Bundle, tmp_path: Path) -> None:
    exact = wp.compile(tiny.assistant(bundle.path.parent, dtype="float32"), out=tmp_path / "exact.bundle")
    assert verify(bundle.path).problems == ()
    for task in bundle.tasks:
        ours, theirs = dense_weights(bundle, task), dense_weights(exact, task)
        for entry in bundle.manifest.weights:
            expected = rounded(bundle.manifest.grid(entry), theirs[entry.name], bundle.manifest.dtype)
            assert torch.equal(ours[entry.name], expected)
    block = bundle.manifest.block_shape
    assert bundle.block_bytes == block.size * int(bundle.manifest.dtype[3:]) // 8 + 2 * block.rows
    assert bundle.block_bytes < exact.block_bytes / 3


def test_a_task_computes_with_them(bundle: Bundle, tmp_path: Path) -> None:
    logits = outputs(bundle)
    export_task(bundle, next(iter(bundle.tasks)), tmp_path / "export")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    with torch.inference_mode():
        expected = model(**INPUTS).logits
    # Beside such weights the kernels round activations to int16.
    torch.testing.assert_close(logits[next(iter(bundle.tasks))], expected, rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("page", [4096, 65536, "auto", None])
def test_repacking_changes_no_output(bundle: Bundle, tmp_path: Path, page: PageSize) -> None:
    before = outputs(bundle)
    repack(bundle.path, tmp_path / "again.bundle", page=page)
    again = Bundle.open(tmp_path / "again.bundle")
    assert page == "auto" or again.page_bytes == (page or bundle.page_bytes)
    after = outputs(again)
    assert all(torch.equal(before[task], after[task]) for task in before)


@pytest.mark.slow
def test_a_grown_bundle_keeps_its_old_outputs(bundle: Bundle, tmp_path: Path) -> None:
    grown = wp.compile(pet(tmp_path), out=tmp_path / "grown.bundle", base=bundle.path)
    before, after = outputs(bundle), outputs(grown)
    assert all(torch.equal(before[task], after[task]) for task in before)
    assert grown.manifest.dtype == bundle.manifest.dtype
    used = grown.pages_of("pet")
    assert np.isin(used, np.arange(len(bundle.pages))).any()

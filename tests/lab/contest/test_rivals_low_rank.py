"""Rivals over a task's pages add its low-rank parts, which they hold in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
import weightpager as wp
from weightpager.bundle import Bundle
from weightpager.store.page_store import LocalStore
from weightpager_lab.contest.rivals.parameters import private, resident
from weightpager_lab.contest.rivals.torch_rival import sparse_module

INPUTS = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
RECOVER = {"method": "finetune", "steps": 4, "batch": 8, "private_steps": 6, "low_rank": 2}


@pytest.mark.slow
def test_a_sparse_rival_answers_as_the_engine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing is rounded, as in an engine.
    monkeypatch.setattr("weightpager_lab.contest.rivals.parameters.as_shipped", torch.Tensor.float)
    wp.compile(tiny.assistant(tmp_path, recover=RECOVER), out=tmp_path / "a.bundle")
    bundle = Bundle.open(tmp_path / "a.bundle")
    arena = np.zeros((len(bundle.pages), bundle.page_bytes), np.uint8)
    store = LocalStore(bundle, direct=False)
    for number, page in enumerate(arena):
        store.read(number, [page.data])
    store.close()
    module = sparse_module(
        bundle,
        "animal",
        bundle.tables("animal"),
        resident(bundle, "bfloat16") | private(bundle, "animal"),
        torch.from_numpy(arena),
        torch.arange(len(arena), dtype=torch.int32),
    )
    with wp.Engine.from_pretrained(bundle.path) as engine, engine.task("animal") as ours, torch.inference_mode():
        wanted = ours(**INPUTS).logits
        torch.testing.assert_close(module(**INPUTS).logits, wanted, rtol=0.002, atol=0.002)
        for layer in module.modules():
            layer._forward_hooks.clear()
        assert not torch.allclose(module(**INPUTS).logits, wanted, rtol=0.002, atol=0.002)

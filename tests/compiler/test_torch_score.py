"""Scores by torch: right answers may be counted with products in bfloat16, likelihoods never are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from weightpager.bundle.format.manifest import TaskKind
from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.measure import torch_score
from weightpager.compiler.training import device
from weightpager.page_dtype import PageDtype


class Classes(torch.nn.Module):
    """Notes in what its products were computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.dtypes: set[torch.dtype] = set()

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        logits = self.layer(torch.nn.functional.one_hot(input_ids, 8).float())
        self.dtypes.add(logits.dtype)
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(
    ("kind", "dtype", "wanted"),
    [
        ("token-classification", "int4", torch.bfloat16),
        ("token-classification", "float32", torch.float32),
        ("language-modeling", "int4", torch.float32),
    ],
)
def test_only_right_answers_are_counted_in_bfloat16(
    kind: TaskKind, dtype: PageDtype, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "multiplies_in_bfloat16", lambda _device: True)
    ids = torch.randint(0, 8, (4, 6))
    batch = Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)
    data = TaskData(kind, tuple("abcdefgh"), (), tuple(range(4)), None, lambda _items: batch)  # type: ignore[arg-type]
    module = Classes()
    monkeypatch.setattr(TaskData, "held_out", lambda _self: [batch])
    score = torch_score(module, data, dtype, lambda *_: None)
    assert module.dtypes == {wanted}
    assert score.items > 0

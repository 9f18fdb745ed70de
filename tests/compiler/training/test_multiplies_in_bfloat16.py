"""Whether matrices are multiplied in bfloat16: by trials, whose times are made up here."""

from __future__ import annotations

import pytest
import torch

from weightpager.compiler.training import device


@pytest.mark.parametrize(
    ("few", "many", "pays", "trials"),
    [
        ((1.0, 5.0), (1.0, 0.1), False, [64]),  # no instruction for it: many rows aren't tried
        ((1.0, 2.0), (1.0, 2.0), False, [64, 2048]),
        ((1.0, 2.0), (1.0, 0.5), True, [64, 2048]),  # tiles, which few rows don't fill
        ((1.0, 0.5), (1.0, 0.8), False, [64, 2048]),  # a little faster isn't worth the rounding
    ],
)
def test_few_rows_rule_it_out_and_many_decide(
    monkeypatch: pytest.MonkeyPatch,
    few: tuple[float, float],
    many: tuple[float, float],
    pays: bool,
    trials: list[int],
) -> None:
    tried: list[int] = []

    def trial(rows: int, times: int) -> tuple[float, float]:
        tried.append(rows)
        return few if rows == 64 else many

    monkeypatch.setattr(device, "_trial", trial)
    device._bfloat16_pays.cache_clear()
    try:
        assert device.multiplies_in_bfloat16(torch.device("cpu")) is pays
    finally:
        device._bfloat16_pays.cache_clear()
    assert tried == trials

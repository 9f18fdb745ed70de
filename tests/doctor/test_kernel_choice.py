from __future__ import annotations

import pytest
import torch

from weightpager.doctor.kernels import kernel_choice


def test_what_serves_on_a_gpu_is_told_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def isa(device: str) -> str:
        asked.append(device)
        return "triton"

    monkeypatch.setattr("weightpager.kernels.torch.isa", isa)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel_choice().gpu is None
    assert asked == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kernel_choice().gpu == "triton"

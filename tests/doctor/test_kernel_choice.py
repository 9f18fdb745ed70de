from __future__ import annotations

import pytest
import torch

from weightpager import kernels
from weightpager.doctor.kernel_choice import kernel_choice


def test_what_serves_on_a_gpu_is_told_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def isa(device: str = "cpu") -> str:
        asked.append(device)
        return "triton" if device == "cuda" else "reference"

    monkeypatch.setattr(kernels, "isa", isa)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert kernel_choice().gpu is None
    assert "cuda" not in asked
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert kernel_choice().gpu == "triton"

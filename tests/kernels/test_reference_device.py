"""The reference kernel makes its tensors where the weight's are. No device but the CPU can be counted on here, so the
test is the other way round: tensors that don't say where they belong would have no memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from paging import numbers, page
from weightpager.kernels.torch import DeviceWeight, reference
from weightpager.page_dtype import ENCODINGS


@pytest.mark.parametrize("dtype", ENCODINGS)
def test_all_tensors_are_made_on_the_device_of_the_weight(dtype: str) -> None:
    random = torch.Generator().manual_seed(0)
    dense = numbers(torch.randn(24, 40, generator=random), dtype)
    weight = DeviceWeight.of(page(dense, torch.eye(3, 5) > 0, 8, 8, dtype=dtype))
    x, bias = torch.ones(2, 40), torch.ones(24)
    linear = reference.paged_linear(x, weight, bias)
    gated = reference.paged_gated(x, weight, weight, "silu", (bias, None))
    with torch.device("meta"):
        again = replace(weight)
        assert torch.equal(reference.paged_linear(x, again, bias), linear)
        assert torch.equal(reference.paged_gated(x, again, again, "silu", (bias, None)), gated)

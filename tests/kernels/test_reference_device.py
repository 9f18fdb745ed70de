"""The reference kernel makes its tensors where the weight's are. No device but the CPU can be counted on here, so the
test is the other way round: tensors that don't say where they belong would have no memory."""

from __future__ import annotations

import pytest
import torch

from paging import page
from weightpager.kernels import PagedWeight, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_all_tensors_are_made_on_the_device_of_the_weight(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    weight = page(torch.randint(-9, 9, (24, 40), generator=random).to(dtype), torch.eye(3, 5) > 0, 8, 8)
    x, bias = torch.ones(2, 40), torch.ones(24)
    linear = reference.paged_linear(x, weight, bias)
    gated = reference.paged_gated(x, weight, weight, "silu", (bias, None))
    with torch.device("meta"):
        tensors = {name: getattr(weight, name) for name in PagedWeight.__dataclass_fields__ if name != "native"}
        again = PagedWeight(**tensors)
        assert torch.equal(reference.paged_linear(x, again, bias), linear)
        assert torch.equal(reference.paged_gated(x, again, again, "silu", (bias, None)), gated)

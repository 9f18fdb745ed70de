"""Attention of short texts computes in float32 where all else is bfloat16; of all others it is torch's own."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from weightpager.compiler.training.loss import SHORT, attention

CPU = torch.device("cpu")


def tokens(count: int) -> Tensor:
    return torch.zeros(2, count, dtype=torch.long)


def gradient(how: AbstractContextManager[Any], inputs: list[Tensor], mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    query, key, value = (tensor.detach().to(dtype).requires_grad_() for tensor in inputs)
    with how:
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert found.dtype == dtype
    found.float().square().sum().backward()
    assert query.grad is not None
    return query.grad.float()


def test_gradients_are_those_of_float32() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 20, 8).bfloat16().float() for _ in range(3)]
    added = torch.randn(2, 1, 20, 20).bfloat16()
    for mask in (None, torch.rand(2, 1, 20, 20) > 0.3, added):
        wide = mask.float() if mask is added else mask
        exact = gradient(nullcontext(), inputs, wide, torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            found = gradient(attention(CPU, tokens(20)), inputs, mask, torch.bfloat16)
        torch.testing.assert_close(found, exact, rtol=0, atol=0.02 * float(exact.abs().max()))


def test_only_short_texts_that_are_learnt_from_in_bfloat16_go_another_way() -> None:
    assert isinstance(attention(CPU, tokens(SHORT)), nullcontext)  # float32 anyway
    with torch.autocast("cpu", torch.bfloat16):
        assert not isinstance(attention(CPU, tokens(SHORT)), nullcontext)
        assert isinstance(attention(CPU, tokens(SHORT + 1)), nullcontext)
        assert isinstance(attention(CPU, None), nullcontext)
        with torch.inference_mode():
            assert isinstance(attention(CPU, tokens(SHORT)), nullcontext)

"""Attention of short texts that are learnt from: in float32 on a CPU, whatever else is multiplied in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

SHORT = 192
"""Tokens of a text up to which the gradient through attention is found faster in float32 (decision 10)."""


def attention(device: torch.device, tokens: Tensor | None) -> AbstractContextManager[Any]:
    """How modules that compute in bfloat16 attend while they learn.

    Args:
        device: of the module.
        tokens: ids [texts, tokens]; None where images are looked at.
    """
    short = tokens is not None and tokens.shape[1] <= SHORT
    learns = torch.is_grad_enabled() and torch.is_autocast_enabled(device.type)
    return _InFloat32() if short and learns and device.type == "cpu" else nullcontext()


class _InFloat32(TorchFunctionMode):
    """Fused attention takes and gives bfloat16, and computes in float32 between."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        wide = {name: _wide(value) for name, value in (kwargs or {}).items()}
        with torch.autocast("cpu", enabled=False):
            return func(*map(_wide, args), **wide).to(args[0].dtype)


def _wide(value: Any) -> Any:
    """A tensor of numbers in float32; all else, masks of yes and no too, as it is."""
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

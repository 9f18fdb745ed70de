"""Building a torch module without memory for its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_EMPTY = {torch.empty, torch.empty_like, torch.empty_strided}


class EmptyOnMeta(TorchFunctionMode):
    """While active, tensors that would be created uninitialised are created on the meta device.

    Linear and embedding weights start that way, so a module of any size costs no memory; what a constructor computes,
    such as the rotary frequencies that no checkpoint holds, stays real. ``torch.device("meta")`` would lose it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Redirect the constructors of uninitialised tensors; leave all else."""
        kwargs = dict(kwargs or {})
        if func in _EMPTY and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def missing_values(module: nn.Module) -> list[str]:
    """Names of parameters and buffers that were left without memory."""
    return [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]

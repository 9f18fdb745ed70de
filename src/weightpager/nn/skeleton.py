"""Building a torch module without memory for its weights, and without more work than an honest one takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_EMPTY = {torch.empty, torch.empty_like, torch.empty_strided}

_NEW = _EMPTY | {
    torch.zeros,
    torch.ones,
    torch.full,
    torch.arange,
    torch.linspace,
    torch.tensor,
    torch.rand,
    torch.randn,
}
"""Where a module may be given up. Elsewhere torch may be setting something back, such as whether it notes gradients."""

_FILLS = {"constant_", "fill_", "kaiming_uniform_", "normal_", "uniform_", "zero_"}
"""What gives a tensor its first values, by name, since transformers has functions of its own for them.

On a tensor without memory they do nothing, and take most of a construction's time.
"""

MOST_CALLS = 2**18
"""Calls of torch while a module is built, where nothing says how many tensors it has."""

_CALLS_OF_TENSOR = 64  # honest architectures take 4 to 10
_SPARE_CALLS = 2**12

_MOST_AT_ONCE = 2**28  # bytes of what a constructor computes at once
_MOST_BYTES = 2**32  # and in all, what it gives back included


def calls_for(tensors: int) -> int:
    """Calls of torch that building a module may take that has so many parameters and buffers."""
    return _CALLS_OF_TENSOR * tensors + _SPARE_CALLS


@contextmanager
def empty_on_meta(most_calls: int = MOST_CALLS) -> Iterator[None]:
    """While active, tensors that would be created uninitialised are created on the meta device.

    Linear and embedding weights start that way, so a module of any size costs no memory; what a constructor computes,
    such as the rotary frequencies that no checkpoint holds, stays real. ``torch.device("meta")`` would lose it.

    Whatever a configuration says, a module that takes too much is given up before it does: what would be computed is
    measured first.

    Args:
        most_calls: of torch, until it is given up.

    Raises:
        ValueError: too many calls, or too much memory.
    """
    with _EmptyOnMeta(most_calls), _HostMemory():
        yield


class _EmptyOnMeta(TorchFunctionMode):
    def __init__(self, most_calls: int) -> None:
        super().__init__()
        self._left = most_calls

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Redirect the constructors of uninitialised tensors; leave all else."""
        self._left -= 1
        if self._left < 0 and func in _NEW:
            raise ValueError("its configuration asks for far more parts than it has weights")
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") in _FILLS:
            filled = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        if func in _EMPTY and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


class _HostMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left = _MOST_BYTES

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Measure what an operation would allocate, then run it."""
        kwargs = kwargs or {}
        size = _result_bytes(func, args, kwargs)
        self._left -= size
        if size > _MOST_AT_ONCE or self._left < 0:
            raise ValueError(f"its configuration asks for {size} bytes beside its weights")
        return func(*args, **kwargs)


def _result_bytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Bytes that an operation takes of the host's memory; 0 if that can't be told beforehand."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    device = kwargs.get("device")
    on_meta = torch.device(device).type == "meta" if device is not None else any(each.is_meta for each in tensors)
    if on_meta or any(result.alias_info is not None for result in func._schema.returns):
        return 0  # a view, or in place
    if any(argument.name == "device" for argument in func._schema.arguments):
        kwargs = {**kwargs, "device": torch.device("meta")}
    args, kwargs = tree_map(_as_meta, (args, kwargs))
    try:
        found = func(*args, **kwargs)
    except Exception:  # noqa: BLE001 - of what depends on values; others will be raised again
        return 0
    return sum(leaf.nbytes for leaf in tree_leaves(found) if isinstance(leaf, Tensor))


def _as_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def missing_values(module: nn.Module) -> list[str]:
    """Names of parameters and buffers that were left without memory."""
    return [name for name, tensor in [*module.named_parameters(), *module.named_buffers()] if tensor.is_meta]

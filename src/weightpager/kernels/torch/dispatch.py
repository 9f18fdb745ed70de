"""The checked call of the kernel that serves a weight, wherever it is."""

from __future__ import annotations

import logging
import os
from collections import Counter
from functools import cache
from importlib import import_module
from threading import Lock
from types import ModuleType

import torch
from torch import Tensor

from weightpager.errors import first_line
from weightpager.kernels import choice
from weightpager.kernels.choice import NATIVE, REFERENCE
from weightpager.kernels.paged_weight import PagedWeight
from weightpager.kernels.torch import reference
from weightpager.kernels.torch.device_weight import Weight, device_of

if NATIVE:
    from weightpager.kernels.torch import cpu

_log = logging.getLogger(__name__)
_DTYPES = (torch.float32, torch.bfloat16)
_TRITON = "triton"

_calls: Counter[str] = Counter()
_calls_lock = Lock()


def paged_linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """``x @ W.T + bias``, accumulated in float32. For inference: no gradient flows through it.

    On one machine a result depends on the values and on the shape of x, never on the number of threads.

    Args:
        x: [..., in_features], float32 or bfloat16, on the weight's device, of any strides. The result has its dtype.
        weight: the weight; every page that its blocks lie in must be in the arena, and stay there during the call.
        bias: [out_features], float32 or bfloat16.

    Raises:
        ValueError: x or bias is not as described, or has no values (`FakeTensorMode`).
        PageNotResidentError: a block's page is not in the arena. Triton's kernels give NaN for what needs it instead.
        ConfigError: ``WEIGHTPAGER_ISA`` names an instruction set that can't run here.
    """
    _check_input(x, weight)
    bias = _checked_bias("bias", bias, weight)
    name, kernels, number = _serving(weight)
    y: Tensor = kernels.paged_linear(x, weight, bias, *number)
    _count(name)
    return y


def paged_gated(
    x: Tensor,
    gate: Weight,
    weight: Weight,
    activation: str,
    biases: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """``activation(x @ gate.T + biases[0]) * (x @ W.T + biases[1])`` in one pass over x; else as `paged_linear`.

    The gate's weight has the shape and blocks of the other one, and biases are theirs in this order. The activation is
    "silu" or "gelu_tanh".
    """
    _check_input(x, weight)
    ours, theirs = ((of.out_features, of.in_features, of.block_rows, of.block_cols, of.dtype) for of in (gate, weight))
    if ours != theirs:
        raise ValueError(f"gate: expected outputs, inputs, block shape and dtype as the weight's {theirs}, got {ours}")
    if activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(reference.ACTIVATIONS)}, got {activation!r}")
    checked = _checked_bias("gate bias", biases[0], gate), _checked_bias("bias", biases[1], weight)
    name, kernels, number = _serving(weight)
    y: Tensor = kernels.paged_gated(x, gate, weight, activation, checked, *number)
    _count(name)
    return y


def isa(device: str | torch.device = "cpu") -> str:
    """What weights on a device are multiplied by: one of `weightpager.kernels.available`, or "triton" on a GPU.

    ``WEIGHTPAGER_ISA=reference`` is obeyed on every device; what else it may name is the CPU's.

    Raises:
        ConfigError: ``WEIGHTPAGER_ISA`` names one that can't run here.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return choice.isa()
    return REFERENCE if os.environ.get("WEIGHTPAGER_ISA") == REFERENCE else _elsewhere(device)


def calls() -> dict[str, int]:
    """How often each kernel has run to its end in this process, by what `isa` said at the time.

    So that a benchmark can prove which kernel it measured.
    """
    with _calls_lock:
        return dict(_calls)


def _serving(weight: Weight) -> tuple[str, ModuleType, tuple[int, ...]]:
    """The kernel of a weight, by name, its module, and its number there where the module has several."""
    chosen, dtype = isa(device_of(weight)), weight.dtype
    if chosen == _TRITON and dtype in (gpu := _gpu()).READS:
        return chosen, gpu, ()
    if isinstance(weight, PagedWeight) and chosen in NATIVE and dtype in choice.READS:
        return chosen, cpu, (NATIVE.index(chosen),)
    return REFERENCE, reference, ()


@cache
def _elsewhere(device: torch.device) -> str:
    why, trouble = "there are none", None
    if device.type == "cuda":
        try:
            _gpu().check(device)
        except Exception as error:  # noqa: BLE001 - Triton, torch, a driver or a compiler that is missing
            why, trouble = first_line(error), error
        else:
            return _TRITON
    # Triton says in the first line only where its compiler stopped, and why in what led to the error.
    more = trouble if len(str(trouble).splitlines()) > 1 else None
    _log.warning("no kernels for %s (%s); the reference kernel serves, and is slow", device, why, exc_info=more)
    return REFERENCE


def _gpu() -> ModuleType:
    """The GPU's kernels. They are imported when they are needed, since Triton takes a second to be."""
    return import_module("weightpager.kernels.torch.gpu")


def _count(kernel: str) -> None:
    with _calls_lock:
        _calls[kernel] += 1


def _check_input(x: Tensor, weight: Weight) -> None:
    _check_operand("x", x, weight)
    if x.dim() < 1 or x.shape[-1] != weight.in_features:
        raise ValueError(f"x: expected [..., {weight.in_features}], got {list(x.shape)}")


def _checked_bias(name: str, bias: Tensor | None, weight: Weight) -> Tensor | None:
    if bias is None:
        return None
    _check_operand(name, bias, weight)
    if bias.shape != (weight.out_features,):
        raise ValueError(f"{name}: expected [{weight.out_features}], got {list(bias.shape)}")
    return bias.contiguous()


def _check_operand(name: str, operand: Tensor, weight: Weight) -> None:
    if operand.dtype not in _DTYPES:
        raise ValueError(f"{name}: expected torch.float32 or torch.bfloat16, got {operand.dtype}")
    device = device_of(weight)
    if operand.device != device or operand.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor on {device}, got {operand.layout} on {operand.device}")

"""Every kernel of this machine against the reference, on a handful of random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from weightpager.blocks import BlockShape
from weightpager.doctor.kernel_choice import REFERENCE
from weightpager.doctor.random_weight import random_weight
from weightpager.kernels import PagedWeight, available
from weightpager.kernels.torch import reference
from weightpager.page_dtype import ENCODINGS

Kernel = Callable[[Tensor, PagedWeight, Tensor | None], Tensor]

_OUT, _IN = 200, 301  # no multiples of a block's sides or of two, so that edges are tried as well
_BLOCKS = (BlockShape(16, 32), BlockShape(64, 64))
_TOKENS = (1, 5, 40)
_ACTIVATIONS = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """One product, and what is right.

    Attributes:
        name: what it is, in words.
        x: [tokens, in_features].
        weight: the weight.
        bias: [out_features].
        expected: float64 [tokens, out_features].
        tolerance: of the error's norm, as a share of the norm of what is expected.
    """

    name: str
    x: Tensor
    weight: PagedWeight
    bias: Tensor
    expected: Tensor
    tolerance: float


@dataclass(frozen=True)
class SelfTest:
    """What became of one kernel's products.

    Attributes:
        kernel: its name.
        checks: products that were tried.
        failures: a line for each that was wrong.
    """

    kernel: str
    checks: int
    failures: tuple[str, ...]


def cases(seed: int = 0) -> list[Case]:
    """The products to try: the same ones for the same seed."""
    random = np.random.default_rng(seed)
    made = []
    for dtype, block in product(ENCODINGS, _BLOCKS):
        weight = random_weight(_OUT, _IN, block, dtype, random)
        made += [_case(weight, block, tokens, x_dtype, random) for tokens, x_dtype in product(_TOKENS, _ACTIVATIONS)]
    return made


def kernels_here() -> dict[str, Kernel]:
    """By name, best first: every kernel that can run on this machine, the reference last."""
    return {name: _native(number) for number, name in enumerate(available()[:-1])} | {REFERENCE: reference.paged_linear}


def self_test(name: str, kernel: Kernel, tried: list[Case]) -> SelfTest:
    """Try a kernel; what it raises for a product is a failure of that product."""
    outcomes = [_outcome(kernel, case) for case in tried]
    return SelfTest(name, len(outcomes), tuple(outcome for outcome in outcomes if outcome))


def _case(weight: PagedWeight, block: BlockShape, tokens: int, dtype: torch.dtype, random: np.random.Generator) -> Case:
    x = torch.from_numpy(random.standard_normal((tokens, _IN), np.float32)).to(dtype)
    bias = torch.from_numpy(random.standard_normal(_OUT, np.float32))
    expected = x.double() @ reference.dense_weight(weight).double().T + bias.double()
    name = f"{tokens} {_name(dtype)} tokens, {weight.dtype} blocks of {block}"
    return Case(name, x, weight, bias, expected, _tolerance(weight, dtype))


def _tolerance(weight: PagedWeight, x: torch.dtype) -> float:
    if weight.encoding.scaled:  # beside such weights activations are rounded to int16
        return 2e-4 if x == torch.float32 else 2e-2
    return 1e-2 if weight.dtype == "bfloat16" or x == torch.bfloat16 else 1e-5


def _outcome(kernel: Kernel, case: Case) -> str:
    """Empty if a kernel's product is right, else what is wrong with it."""
    try:
        y = kernel(case.x, case.weight, case.bias)
    except (RuntimeError, ValueError) as error:
        return f"{case.name}: {error}"
    if y.shape != case.expected.shape:
        return f"{case.name}: expected a result of {list(case.expected.shape)}, got {list(y.shape)}"
    error_norm = float((y.double() - case.expected).norm() / case.expected.norm())
    if error_norm < case.tolerance:  # never true of NaN
        return ""
    return f"{case.name}: expected a relative error below {case.tolerance:.0e}, got {error_norm:.1e}"


def _native(number: int) -> Kernel:
    """The native kernel of that number, which must exist; the reference beside weights that it doesn't read."""
    from weightpager.kernels import native
    from weightpager.kernels.torch import cpu  # only where the native module has been built

    def served(x: Tensor, weight: PagedWeight, bias: Tensor | None) -> Tensor:
        if weight.dtype in native.READS:
            return cpu.paged_linear(x, weight, bias, number)
        return reference.paged_linear(x, weight, bias)

    return served


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

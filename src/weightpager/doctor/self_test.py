"""Every kernel of this machine against the reference, on a handful of random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockShape
from weightpager.doctor.random_weight import dense_weight, random_weight
from weightpager.kernels import PagedWeight
from weightpager.kernels.choice import NATIVE, REFERENCE
from weightpager.machine.packages import is_installed
from weightpager.page_dtype import ENCODINGS

Values = npt.NDArray[Any]
"""float32, or bfloat16 as uint16."""

Kernel = Callable[[Values, PagedWeight, Values | None], Values]

_OUT, _IN = 200, 301  # no multiples of a block's sides or of two, so that edges are tried as well
_BLOCKS = (BlockShape(16, 32), BlockShape(64, 64))
_TOKENS = (1, 5, 40)
_ACTIVATIONS = ("float32", "bfloat16")
_THREADS = 2


@dataclass(frozen=True)
class Case:
    """One product, and what is right.

    Attributes:
        name: what it is, in words.
        x: [tokens, in_features].
        weight: the weight.
        bias: [out_features].
        expected: float64 [tokens, out_features].
        tolerance: the most that the error's norm may be, as a share of the norm of what is expected.
    """

    name: str
    x: Values
    weight: PagedWeight
    bias: Values
    expected: npt.NDArray[np.float64]
    tolerance: float


@dataclass(frozen=True)
class SelfTest:
    """What became of one kernel's products.

    Attributes:
        kernel: its name.
        checks: number of products that were tried.
        failures: a line for each product that was wrong.
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
    """By name, best first: every kernel that can run on this machine, the reference last where torch is installed."""
    kernels = {name: _native(number) for number, name in enumerate(NATIVE)}
    return kernels | ({REFERENCE: _reference()} if is_installed("torch") else {})


def self_test(name: str, kernel: Kernel, tried: list[Case]) -> SelfTest:
    """Try a kernel; what it raises for a product is a failure of that product."""
    outcomes = [_outcome(kernel, case) for case in tried]
    return SelfTest(name, len(outcomes), tuple(outcome for outcome in outcomes if outcome))


def _case(weight: PagedWeight, block: BlockShape, tokens: int, dtype: str, random: np.random.Generator) -> Case:
    x = random.standard_normal((tokens, _IN), np.float32)
    stored = ENCODINGS[dtype].narrow(x)
    bias = random.standard_normal(_OUT, np.float32)
    expected = _wide(stored) @ dense_weight(weight).T + bias
    name = f"{tokens} {dtype} tokens, {weight.dtype} blocks of {block}"
    return Case(name, stored, weight, bias, expected, _tolerance(weight, dtype))


def _tolerance(weight: PagedWeight, x: str) -> float:
    if weight.encoding.scaled:  # beside such weights activations are rounded to int16
        return 2e-4 if x == "float32" else 2e-2
    return 1e-2 if weight.dtype == "bfloat16" or x == "bfloat16" else 1e-5


def _outcome(kernel: Kernel, case: Case) -> str:
    """Empty if a kernel's product is right, else what is wrong with it."""
    try:
        y = kernel(case.x, case.weight, case.bias)
    except (RuntimeError, ValueError) as error:
        return f"{case.name}: {error}"
    if y.shape != case.expected.shape:
        return f"{case.name}: expected a result of {list(case.expected.shape)}, got {list(y.shape)}"
    with np.errstate(invalid="ignore"):  # NaN
        error_norm = float(np.linalg.norm(_wide(y) - case.expected) / np.linalg.norm(case.expected))
    if error_norm < case.tolerance:  # never true of NaN
        return ""
    return f"{case.name}: expected a relative error below {case.tolerance:.0e}, got {error_norm:.1e}"


def _wide(values: Values) -> npt.NDArray[np.float64]:
    return ENCODINGS["bfloat16" if values.dtype == np.uint16 else "float32"].widen(values).astype(np.float64)


def _native(number: int) -> Kernel:
    """The native kernel of that number, which must exist."""
    from weightpager.kernels import native  # only where the native module has been built

    def served(x: Values, weight: PagedWeight, bias: Values | None) -> Values:
        return native.paged_linear(x, weight, bias, number, _THREADS)

    return served


def _reference() -> Kernel:
    from weightpager.kernels.torch import reference
    from weightpager.kernels.torch.arrays import as_array, as_tensor

    def tensor(values: Values) -> Any:
        return as_tensor(values, "bfloat16" if values.dtype == np.uint16 else "float32")

    def served(x: Values, weight: PagedWeight, bias: Values | None) -> Values:
        return as_array(reference.paged_linear(tensor(x), weight, None if bias is None else tensor(bias)))

    return served

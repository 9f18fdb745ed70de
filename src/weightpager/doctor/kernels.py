"""Kernels that run here, and whether they compute what the reference computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager import kernels
from weightpager.blocks import BlockShape
from weightpager.kernels import PagedWeight
from weightpager.kernels.choice import NATIVE, NO_NATIVE, READS, REFERENCE
from weightpager.machine.packages import is_installed
from weightpager.page_dtype import ENCODINGS, block_bytes, decode, encode, page_content


@dataclass(frozen=True)
class KernelChoice:
    """What multiplies by paged weights in this process.

    Attributes:
        available: kernels that can run here, best first; the reference, which is plain torch, where that is installed.
        chosen: the one that serves.
        asked: what ``WEIGHTPAGER_ISA`` names; None if it doesn't.
        exact: the one that serves float32 activations and weights.
        threading: ``"gomp"``, ``"own"`` or, for the reference, ``"torch"``.
        threads: number of threads that the kernels spread their work over.
        missing: the reason why the native kernels are not there; empty if they are.
        gpu: the one that serves on a GPU; None where torch sees none, or isn't installed.
    """

    available: tuple[str, ...]
    chosen: str
    asked: str | None
    exact: str
    threading: str
    threads: int
    missing: str
    gpu: str | None = None


def kernel_choice() -> KernelChoice:
    """Which kernels this process uses now. Raises `ConfigError` if ``WEIGHTPAGER_ISA`` names one that can't run."""
    chosen = kernels.isa()
    return KernelChoice(
        available=kernels.available() if is_installed("torch") else NATIVE,
        chosen=chosen,
        asked=os.environ.get("WEIGHTPAGER_ISA") or None,
        exact=kernels.exact(chosen),
        threading=kernels.thread_pool(),
        threads=_threads(),
        missing=NO_NATIVE,
        gpu=_on_gpu(),
    )


def _threads() -> int:
    if is_installed("torch"):
        import torch

        return torch.get_num_threads()
    if NATIVE:
        from weightpager.backends.native.program import thread_count  # only where the native module has been built

        return thread_count()
    return 1


def _on_gpu() -> str | None:
    if not is_installed("torch"):
        return None
    import torch

    from weightpager.kernels.torch import isa

    return isa("cuda") if torch.cuda.is_available() else None


_PER_PAGE = 3  # no power of two, so that a wrong page or place doesn't go unseen
_SPARE_PAGES, _SPARE_SLOTS = 2, 2


def random_weight(
    out_features: int, in_features: int, block: BlockShape, dtype: str, random: np.random.Generator
) -> PagedWeight:
    """A weight that keeps about half its blocks, in shuffled places of shuffled pages.

    Whatever is in the arena and not a kept block is filled with bytes that would spoil a result.
    """
    keep = random.random((-(-out_features // block.rows), -(-in_features // block.cols))) < 0.5
    content = encode(_values(keep, out_features, in_features, block, random), dtype)  # [kept, block bytes]
    pages = len(content) // _PER_PAGE + _SPARE_PAGES
    locations = random.permutation(pages * _PER_PAGE)[: len(content)]
    page_table = random.permutation(pages + _SPARE_SLOTS)[:pages]
    places = np.full((pages + _SPARE_SLOTS, _PER_PAGE, block_bytes(block, dtype)), 0xFF, np.uint8)  # 0xFFFF: NaN
    places[page_table[locations // _PER_PAGE], locations % _PER_PAGE] = content
    return PagedWeight(
        arena=_arena(places, block, dtype),
        page_table=_indices(page_table),
        crow_indices=_indices(np.concatenate([[0], keep.sum(1).cumsum()])),
        col_indices=_indices(keep.nonzero()[1]),
        locations=_indices(locations),
        out_features=out_features,
        in_features=in_features,
        block_rows=block.rows,
        block_cols=block.cols,
        dtype=dtype,
    )


def dense_weight(weight: PagedWeight) -> npt.NDArray[np.float64]:
    """What its blocks say, [out_features, in_features], zero where a block is dropped."""
    block = BlockShape(weight.block_rows, weight.block_cols)
    pages, places = np.divmod(weight.locations, weight.blocks_per_page)
    slots = weight.page_table[pages]
    used = weight.blocks_per_page * weight.block_bytes
    parts = []
    for first, size in ((0, weight.block_bytes), (used, weight.scale_bytes)):
        at = first + places[:, None] * size + np.arange(size)
        parts.append(weight.arena[slots[:, None], at])
    grid_rows, grid_cols = weight.grid
    rows = np.repeat(np.arange(grid_rows), np.diff(weight.crow_indices))
    dense: npt.NDArray[np.float64] = np.zeros((grid_rows, grid_cols, block.rows, block.cols))
    dense[rows, weight.col_indices] = decode(np.concatenate(parts, 1), block, weight.dtype)
    whole = dense.swapaxes(1, 2).reshape(grid_rows * block.rows, grid_cols * block.cols)
    return np.asarray(whole[: weight.out_features, : weight.in_features])


def _values(
    keep: npt.NDArray[np.bool_], out_features: int, in_features: int, block: BlockShape, random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The kept blocks, [kept, rows, cols], zero where they stick out of the weight."""
    grid_rows, grid_cols = keep.shape
    padded = np.zeros((grid_rows * block.rows, grid_cols * block.cols), np.float32)
    padded[:out_features, :in_features] = random.standard_normal((out_features, in_features), np.float32)
    blocks = padded.reshape(grid_rows, block.rows, grid_cols, block.cols).swapaxes(1, 2)
    return np.ascontiguousarray(blocks[keep])


def _arena(places: npt.NDArray[np.uint8], block: BlockShape, dtype: str) -> npt.NDArray[np.uint8]:
    """Slots as pages lie in them, uint8 [slots, page bytes]."""
    page_bytes = places.shape[1] * places.shape[2]
    pages = b"".join(page_content(slot, block, dtype, page_bytes) for slot in places)
    return np.frombuffer(bytearray(pages), np.uint8).reshape(len(places), page_bytes)


def _indices(array: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    return array.astype(np.int32)


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
    """One product, in words, and what is right.

    Attributes:
        x: [tokens, in_features].
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
    """What became of so many products of one kernel; ``failures`` has a line for each that was wrong."""

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


def read_by(name: str, tried: list[Case]) -> list[Case]:
    """The products with weights of dtypes that a kernel reads; the reference reads all."""
    return [case for case in tried if name not in NATIVE or case.weight.dtype in READS]


def self_test(name: str, kernel: Kernel, tried: list[Case]) -> SelfTest:
    """Try a kernel; what it raises for a product is a failure of that product."""
    outcomes = [_outcome(kernel, case) for case in read_by(name, tried)]
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
    from weightpager.kernels.torch.device_weight import as_array, as_tensor

    def tensor(values: Values) -> Any:
        return as_tensor(values, "bfloat16" if values.dtype == np.uint16 else "float32")

    def served(x: Values, weight: PagedWeight, bias: Values | None) -> Values:
        return as_array(reference.paged_linear(tensor(x), weight, None if bias is None else tensor(bias)))

    return served

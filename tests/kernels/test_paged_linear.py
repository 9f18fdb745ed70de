"""Every kernel that this machine has, against a dense product in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import gelu

from paging import masked, numbers, page
from weightpager.kernels import PagedWeight, PageNotResidentError, available
from weightpager.kernels.torch import calls, dispatch, paged_gated, paged_linear
from weightpager.kernels.torch.reference import dense_weight
from weightpager.page_dtype import ENCODINGS

DTYPES = [torch.float32, torch.bfloat16]
SIZES = [8, 16, 32, 64, 128, 256]

FEW = 16
"""Results of a product."""


@pytest.fixture(params=available(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEIGHTPAGER_ISA", request.param)
        yield request.param
    torch.set_num_threads(threads)


def magnitude(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The norm of a product, or that of its sums without signs where its results are few: all of them might cancel."""
    if y.numel() > FEW:
        return y.norm()
    y = x.double().abs() @ weight.abs().T
    return (y if bias is None else y + bias.double().abs()).norm()


@dataclass
class Case:
    dense: Tensor
    mask: Tensor
    block: tuple[int, int]
    x: Tensor
    bias: Tensor | None
    seed: int
    trailer: int
    dtype: str

    @property
    def weight(self) -> PagedWeight:
        return page(self.dense, self.mask, *self.block, seed=self.seed, trailer=self.trailer, dtype=self.dtype)

    @property
    def multiplied(self) -> Tensor:
        """The weight that x is multiplied by, float64."""
        if self.dense.dtype != torch.int8:
            return masked(self.dense, self.mask, *self.block).double()
        dense = dense_weight(self.weight)  # scales are drawn with the pages
        kept = masked(torch.ones_like(self.dense), self.mask, *self.block)
        assert bool((dense[kept == 0] == 0).all())
        return dense.double()

    @property
    def expected(self) -> Tensor:
        y = self.x.double() @ self.multiplied.T
        return y if self.bias is None else y + self.bias.double()

    @property
    def magnitude(self) -> Tensor:
        """What an error of the result is held against."""
        return magnitude(self.expected, self.x, self.multiplied, self.bias)

    @property
    def tolerance(self) -> float:
        if self.dense.dtype == torch.int8:  # activations are rounded to int16 beside such weights
            return 2e-4 if self.x.dtype == torch.float32 else 2e-2
        return 1e-5 if self.dense.dtype == self.x.dtype == torch.float32 else 1e-2


def strided(x: Tensor, how: str) -> Tensor:
    """The same values in memory of another shape."""
    if how == "every other":
        return torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2]
    if how == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "offset":
        return torch.nn.functional.pad(x, (1, 2), value=torch.nan)[..., 1:-2]
    return x


@st.composite
def cases(draw: st.DrawFn) -> Case:
    block = draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES))
    outputs, inputs = draw(st.integers(1, 2 * block[0] + 9)), draw(st.integers(1, 3 * block[1] + 9))
    seed = draw(st.integers(0, 2**16))
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    grid = -(-outputs // block[0]), -(-inputs // block[1])
    x = normal(*draw(st.lists(st.integers(1, 3), max_size=2)), draw(st.integers(0, 70)), inputs)
    x = x.to(draw(st.sampled_from(DTYPES)))
    bias = draw(st.sampled_from([None, *DTYPES]))
    dtype = draw(st.sampled_from(list(ENCODINGS)))
    return Case(
        dense=numbers(normal(outputs, inputs), dtype),
        mask=torch.rand(grid, generator=random) < draw(st.sampled_from([0.0, 0.25, 0.5, 1.0])),
        block=block,
        x=strided(x, draw(st.sampled_from(["", "every other", "transposed", "offset"]))),
        bias=None if bias is None else normal(outputs).to(bias),
        seed=seed,
        trailer=draw(st.sampled_from([0, 5, 32])),  # no room for another block
        dtype=dtype,
    )


def by_torch(case: Case) -> bool:
    """Whether the reference serves, in which torch's own product promises no bits."""
    return dispatch._serving(case.weight)[0] == "reference"


@pytest.mark.slow
@settings(max_examples=60)  # native tests try a thousand cases of each kernel
@given(case=cases(), threads=st.integers(1, 4))
def test_close_to_the_dense_product_on_any_threads(case: Case, threads: int) -> None:
    torch.set_num_threads(1)
    y = paged_linear(case.x, case.weight, case.bias)
    assert y.dtype == case.x.dtype
    assert y.shape == case.expected.shape
    assert (y.double() - case.expected).norm() <= case.tolerance * case.magnitude

    torch.set_num_threads(threads)
    again = paged_linear(case.x, case.weight, case.bias)
    assert torch.equal(again, y) or by_torch(case)


def gated_error(case: Case, gated: Tensor, act: Tensor, gate_size: Tensor) -> Tensor:
    """What the product of an activation and `case.expected` may be off by, where each of its two products is off.

    (a + da)(u + du) - au = a du + u da + da du. Far below zero an activation is flat: what its gate is off by is then
    much in relation, little in itself. Neither activation is steeper than 1.13.
    """
    if not act.numel():
        return torch.tensor(0.0)
    gate_off, up_off = case.tolerance * 1.13 * gate_size, case.tolerance * case.magnitude
    return act.abs().max() * up_off + case.expected.abs().max() * gate_off + gate_off * up_off


def one_output(weights: list[int], x: list[float]) -> Case:
    """A product in int8 of one output."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    return Case(torch.tensor([weights], dtype=torch.int8), mask, (8, 8), torch.tensor([x]), None, 0, 0, "int8")


# Where terms cancel, the rounding of activations is as large as what is left of the sum.
CANCELLING = one_output([127, -126], [1.0, 1.00793])


@settings(max_examples=30)
@example(case=CANCELLING, kept=1.0, activation="silu")
@given(case=cases(), kept=st.sampled_from([0.0, 0.4, 1.0]), activation=st.sampled_from(["silu", "gelu_tanh"]))
def test_a_gated_layer_is_close_to_the_dense_one(case: Case, kept: float, activation: str) -> None:
    random = torch.Generator().manual_seed(case.seed + 1)
    mask = torch.rand(case.mask.shape, generator=random) < kept
    gate = page(case.dense.flip(0), mask, *case.block, seed=case.seed + 1, dtype=case.dtype)
    gate_bias = None if case.bias is None else case.bias.flip(0)
    torch.set_num_threads(1)
    y = paged_gated(case.x, gate, case.weight, activation, (gate_bias, case.bias))
    multiplied = dense_weight(gate).double()
    gated = case.x.double() @ multiplied.T
    gated = gated if gate_bias is None else gated + gate_bias.double()
    act = torch.nn.functional.silu(gated) if activation == "silu" else gelu(gated, approximate="tanh")
    expected = act * case.expected
    assert y.dtype == case.x.dtype
    gate_size = magnitude(gated, case.x, multiplied, gate_bias)
    assert (y.double() - expected).norm() <= case.tolerance * expected.norm() + gated_error(case, gated, act, gate_size)

    torch.set_num_threads(3)
    again = paged_gated(case.x, gate, case.weight, activation, (gate_bias, case.bias))
    assert torch.equal(again, y) or by_torch(case)


@pytest.mark.parametrize("size", [1e-30, 1.0, 50.0, 1e4, 1e30, float("inf"), float("nan")])
def test_activations_keep_their_head_at_any_size(size: float) -> None:
    weight = page(torch.eye(8), torch.ones(1, 1, dtype=torch.bool), 8, 8)
    ones = page(torch.zeros(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 8)
    x = torch.tensor([[size, -size, *torch.linspace(-9, 9, 6).tolist()]]).nan_to_num(nan=torch.nan, posinf=3e38)
    for activation, exact in (("silu", torch.nn.functional.silu), ("gelu_tanh", partial(gelu, approximate="tanh"))):
        found = paged_gated(x, weight, ones, activation, (None, torch.ones(8)))
        if size == size and size <= 1e30:
            torch.testing.assert_close(found, exact(x), rtol=1e-5, atol=1e-6)
        assert bool(found[:, 2:].isfinite().all()) or size != size or size > 1e30


@pytest.mark.parametrize("which", [0, 1])
def test_a_gated_layer_names_the_page_that_is_missing(which: int) -> None:
    weights = [page(torch.ones(16, 16), torch.ones(2, 2, dtype=torch.bool), 8, 8, seed=seed) for seed in (0, 1)]
    weights[which].page_table.fill(-1)
    with pytest.raises(PageNotResidentError):
        paged_gated(torch.ones(3, 16), *weights, "silu")


def test_gated_operands_are_checked() -> None:
    gate, weight = (page(torch.ones(8, width), torch.ones(1, 1, dtype=torch.bool), 8, 8) for width in (8, 7))
    with pytest.raises(ValueError, match="gate: expected outputs, inputs"):
        paged_gated(torch.ones(1, 7), gate, weight, "silu")
    wide = page(torch.ones(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 16)
    with pytest.raises(ValueError, match="block shape"):
        paged_gated(torch.ones(1, 8), gate, wide, "silu")
    with pytest.raises(ValueError, match="activation: expected one of silu, gelu_tanh, got 'relu'"):
        paged_gated(torch.ones(1, 8), gate, gate, "relu")
    with pytest.raises(ValueError, match=r"gate bias: expected \[8\], got \[7\]"):
        paged_gated(torch.ones(1, 8), gate, gate, "silu", (torch.ones(7), None))


@pytest.mark.parametrize("isa", available()[:-1], indirect=True)  # torch's own product doesn't promise it
@pytest.mark.parametrize("tokens", [1, 2, 7, 16, 100, 300])
@pytest.mark.parametrize("outputs", [24, 700])
def test_threads_do_not_change_a_bit(isa: str, outputs: int, tokens: int) -> None:
    torch.manual_seed(tokens)
    mask = torch.rand(-(-outputs // 16), 33) < 0.5
    mask[: len(mask) // 3] &= torch.rand(33) < 0.1  # rows of very different weight
    weight = page(torch.randn(outputs, 1031).bfloat16(), mask, 16, 32)
    x = torch.randn(tokens, 1031)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(paged_linear(x, weight))
    assert all(torch.equal(results[0], y) for y in results[1:])


def test_more_tokens_than_one_panel_of_activations() -> None:
    torch.manual_seed(0)
    mask = torch.rand(2, 16) < 0.7
    dense, x = torch.randn(32, 4096), torch.randn(150, 4096)
    expected = x.double() @ masked(dense, mask, 16, 256).double().T
    assert (paged_linear(x, page(dense, mask, 16, 256)) - expected).norm() <= 1e-5 * expected.norm()


def one_page_absent(slot: int) -> tuple[PagedWeight, int]:
    weight = page(torch.randn(300, 200), torch.rand(38, 25) < 0.4, 8, 8)
    absent = int(weight.locations[weight.kept // 2]) // weight.blocks_per_page
    weight.page_table[absent] = slot
    return weight, absent


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("slot", [-1, -(2**31), 10_000, 2**31 - 1])
def test_a_page_that_is_not_resident_is_an_error(isa: str, slot: int, threads: int) -> None:
    torch.set_num_threads(threads)
    weight, absent = one_page_absent(slot)
    before = calls().get(isa, 0)
    with pytest.raises(PageNotResidentError, match=f"page {absent} is not in the arena") as error:
        paged_linear(torch.randn(20, 200), weight)
    assert error.value.page == absent
    assert calls().get(isa, 0) == before


def test_a_page_that_no_kept_block_lies_in_may_be_absent() -> None:
    weight = page(torch.ones(16, 16), torch.tensor([[1, 0], [0, 0]], dtype=torch.bool), 8, 8)
    needed = int(weight.locations[0]) // weight.blocks_per_page
    weight.page_table[np.arange(len(weight.page_table)) != needed] = -1
    assert paged_linear(torch.ones(1, 16), weight).tolist() == [[8.0] * 8 + [0.0] * 8]


def test_the_page_table_is_read_at_every_call() -> None:
    weight = page(torch.ones(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 8)
    x = torch.ones(1, 8)
    paged_linear(x, weight)
    used = int(weight.locations[0]) // weight.blocks_per_page
    old, new = int(weight.page_table[used]), (int(weight.page_table[used]) + 1) % len(weight.arena)
    weight.arena[new] = weight.arena[old]
    weight.arena[old] = 0xFF
    weight.page_table[used] = new
    assert paged_linear(x, weight).tolist() == [[8.0] * 8]


def test_results_are_rounded_to_bfloat16_as_torch_does() -> None:
    factors = torch.tensor([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 3e38, torch.inf, torch.nan])
    values = torch.tensor([1.0, 2.0, 1.5, 3.0, 0.0, -7.0]).bfloat16()
    weight = page(factors[:, None], torch.ones(1, 1, dtype=torch.bool), 8, 8)
    expected = (values.float()[:, None] * factors).bfloat16()
    torch.testing.assert_close(paged_linear(values[:, None], weight), expected, rtol=0, atol=0, equal_nan=True)


def test_the_result_is_where_the_weight_is_whatever_the_default_device() -> None:
    weight = page(torch.ones(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 8)
    x = torch.ones(1, 8)
    with torch.device("meta"):
        y = paged_linear(x, weight)
    assert y.tolist() == [[8.0] * 8]


def test_no_gradient_flows() -> None:
    weight = page(torch.ones(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 8)
    assert not paged_linear(torch.ones(1, 8, requires_grad=True), weight).requires_grad


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.ones(2, 9), None, r"x: expected \[..., 8\], got \[2, 9\]"),
        (torch.tensor(1.0), None, r"x: expected \[..., 8\], got \[\]"),
        (torch.ones(2, 8).double(), None, "x: expected torch.float32 or torch.bfloat16, got torch.float64"),
        (torch.ones(2, 8, device="meta"), None, "x: expected a dense tensor on cpu"),
        (torch.ones(2, 8), torch.ones(7), r"bias: expected \[8\], got \[7\]"),
        (torch.ones(2, 8), torch.ones(1, 8), r"bias: expected \[8\], got \[1, 8\]"),
        (torch.ones(2, 8), torch.ones(8).half(), "bias: expected torch.float32 or torch.bfloat16, got torch.float16"),
    ],
)
def test_operands_are_checked(x: Tensor, bias: Tensor | None, message: str) -> None:
    weight = page(torch.ones(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 8)
    with pytest.raises(ValueError, match=message):
        paged_linear(x, weight, bias)


def test_an_arena_without_slots_serves_an_empty_weight() -> None:
    weight = page(torch.ones(20, 20), torch.zeros(3, 3, dtype=torch.bool), 8, 8)
    empty = replace(weight, arena=np.zeros((0, 256), np.uint8), page_table=np.zeros(0, np.int32))
    assert paged_linear(torch.ones(2, 20), empty, torch.arange(20.0)).tolist() == [list(range(20))] * 2

"""The GPU's kernels: on a GPU where there is one, else in Triton's interpreter; and compiled for others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paging import numbers, page
from weightpager.kernels import PagedWeight
from weightpager.kernels.torch import DeviceWeight, calls, dispatch, paged_gated, paged_linear, reference

pytest.importorskip("triton", reason="Triton is not installed")

from weightpager.kernels.torch import gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16]

# The interpreter computes exp(-x) of any x, whose infinity a sigmoid is meant to have.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


def on_device(weight: PagedWeight) -> DeviceWeight:
    return DeviceWeight.of(weight, DEVICE)


def drawn_weight(
    block: tuple[int, int], outputs: int, inputs: int, dtype: str, share: float, seed: int
) -> DeviceWeight:
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(outputs, inputs, generator=random)
    dense = numbers(values, dtype)
    mask = torch.rand(-(-outputs // block[0]), -(-inputs // block[1]), generator=random) < share
    return on_device(page(dense, mask, *block, seed=seed, trailer=32, dtype=dtype))


@st.composite
def weights(draw: st.DrawFn, copies: int = 1) -> list[DeviceWeight]:
    """Weights of one shape and different blocks."""
    block = draw(st.sampled_from([8, 16, 64])), draw(st.sampled_from([8, 32, 64, 128]))
    outputs, inputs = draw(st.integers(1, 2 * block[0] + 9)), draw(st.integers(1, 3 * block[1] + 9))
    dtype = draw(st.sampled_from(sorted(gpu.READS)))
    seeds = [draw(st.integers(0, 2**16)) for _ in range(copies)]
    share = st.sampled_from([0.0, 0.3, 0.7, 1.0])
    return [drawn_weight(block, outputs, inputs, dtype, draw(share), seed) for seed in seeds]


@st.composite
def activations(draw: st.DrawFn, weight: DeviceWeight) -> tuple[Tensor, Tensor | None]:
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    tokens = draw(st.sampled_from([[], [0], [1], [3], [2, 4], [17], [70]]))
    x = torch.randn(*tokens, weight.in_features, generator=random).to(DEVICE, draw(st.sampled_from(DTYPES)))
    dtype = draw(st.sampled_from([None, *DTYPES]))
    bias = None if dtype is None else torch.randn(weight.out_features, generator=random).to(DEVICE, dtype)
    return (x.flip(0).transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x), bias


def close(found: Tensor, expected: Tensor, magnitude: Tensor | float = 0) -> bool:
    """Within what rounding to the result's dtype leaves; the interpreter rounds bfloat16 towards zero.

    The error is held against the result's norm and, where a result may be next to nothing, ``magnitude``.
    """
    share = 1e-5 if found.dtype == torch.float32 else 1e-2
    same = found.dtype == expected.dtype and found.shape == expected.shape
    return same and bool((found.float() - expected.float()).norm() <= share * (expected.float().norm() + magnitude))


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_a_layer_is_what_the_reference_says(data: st.DataObject) -> None:
    (weight,) = data.draw(weights())
    x, bias = data.draw(activations(weight))
    assert close(gpu.paged_linear(x, weight, bias), reference.paged_linear(x, weight, bias))


@pytest.mark.slow
@settings(max_examples=30)
@given(st.data(), st.sampled_from(sorted(reference.ACTIVATIONS)))
def test_a_gated_layer_is_what_the_reference_says(data: st.DataObject, activation: str) -> None:
    gate, weight = data.draw(weights(copies=2))
    x, bias = data.draw(activations(weight))
    found = gpu.paged_gated(x, gate, weight, activation, (None, bias))
    # Far below zero an activation is next to nothing, and so is the result, but not what rounding leaves.
    parts = reference.paged_linear(x, gate), reference.paged_linear(x, weight, bias)
    magnitude = parts[0].float().norm() * parts[1].float().norm()
    assert close(found, reference.paged_gated(x, gate, weight, activation, (None, bias)), magnitude)


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("dtype", sorted(gpu.READS))
def test_what_needs_a_page_that_is_absent_is_not_a_number(dtype: str, tokens: int) -> None:
    weight = drawn_weight((16, 32), 64, 96, dtype, 0.5, seed=1)
    absent = weight.locations[weight.kept // 2] // weight.blocks_per_page
    rows = torch.arange(4, device=DEVICE).repeat_interleave(weight.crow_indices.diff().long())
    hit = torch.zeros(4, dtype=torch.bool, device=DEVICE)
    hit[rows[weight.locations // weight.blocks_per_page == absent]] = True
    assert 0 < int(hit.sum()) < 4
    x = torch.randn(tokens, 96).to(DEVICE)
    before = gpu.paged_linear(x, weight, None)
    spoilt = hit.repeat_interleave(16)
    for slot in (-1, -(2**31), 10_000, 2**31 - 1):
        weight.page_table[absent] = slot
        after = gpu.paged_linear(x, weight, None)
        assert bool(after[:, spoilt].isnan().all()), slot
        assert torch.equal(after[:, ~spoilt], before[:, ~spoilt]), slot


def test_the_page_table_is_read_at_every_call() -> None:
    weight = drawn_weight((16, 32), 40, 70, "bfloat16", 1.0, seed=2)
    x = torch.randn(2, 70).to(DEVICE)
    before = gpu.paged_linear(x, weight, None)
    weight.arena.copy_(weight.arena.roll(1, 0))
    weight.page_table.copy_((weight.page_table + 1) % len(weight.arena))
    assert torch.equal(gpu.paged_linear(x, weight, None), before)


def test_pages_that_words_do_not_fit_into_are_refused() -> None:
    weight = on_device(page(torch.ones(8, 8), torch.ones(1, 1, dtype=torch.bool), 8, 8, trailer=5))
    with pytest.raises(ValueError, match="expected pages of a multiple of 4 bytes on a GPU, got 773"):
        gpu.paged_linear(torch.ones(1, 8, device=DEVICE), weight, None)


@pytest.mark.slow
def test_the_check_passes_here_and_notices_other_results(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.check(DEVICE)
    with monkeypatch.context() as other:
        other.setattr(reference, "paged_linear", lambda x, weight: torch.full((1,), torch.nan))
        with pytest.raises(RuntimeError, match="float32 weights and 1 tokens: other results than the reference has"):
            gpu.check(DEVICE)
    monkeypatch.setattr(reference, "paged_gated", lambda *_arguments: torch.full((1,), torch.nan))
    with pytest.raises(RuntimeError, match="bfloat16 weights and 1 tokens gated by silu: other results"):
        gpu.check(DEVICE)


def test_more_tokens_than_a_grid_is_high() -> None:
    weight = drawn_weight((8, 8), 8, 8, "float32", 1.0, seed=5)
    grid, _ = gpu._tile(torch.empty(8 * 65_536, 8), weight)
    assert grid == (65_536,)


@pytest.mark.skipif(not gpu._INTERPRETED, reason="kernels are compiled")
def test_the_interpreter_serves_no_gpu() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET is set"):
        gpu.check("cuda")


def test_calls_go_through_the_same_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "isa", lambda device: "triton")
    weight = drawn_weight((16, 32), 40, 70, "bfloat16", 0.5, seed=3)
    x, before = torch.randn(2, 3, 70).to(DEVICE), calls().get("triton", 0)
    assert close(paged_linear(x, weight), reference.paged_linear(x, weight))
    found = paged_gated(x, weight, weight, "silu")
    assert close(found, reference.paged_gated(x, weight, weight, "silu", (None, None)))
    assert calls()["triton"] == before + 2


@pytest.mark.slow
@pytest.mark.parametrize("capability", [87, 90])
def test_kernels_compile_for_gpus_that_are_not_here(capability: int) -> None:
    script = Path(__file__).parents[1] / "support" / "arrays" / "compile_for_gpu.py"
    alone = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, script, str(capability)], capture_output=True, text=True, env=alone)
    assert ran.returncode == 0, ran.stderr
    made = json.loads(ran.stdout)
    assert len(made) == 18
    assert all(("mma" in kernel["uses"]) == (kernel["bfloat16"] and kernel["matrix"]) for kernel in made)
    assert max(kernel["shared"] for kernel in made) <= 48 << 10  # bytes that any GPU gives a program
    assert max(kernel["stack"] for kernel in made) == 0  # no register is spilt

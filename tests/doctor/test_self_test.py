"""Right kernels pass, wrong ones are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightpager import kernels
from weightpager.blocks import BlockShape
from weightpager.doctor.kernels import (
    Kernel,
    Values,
    cases,
    dense_weight,
    kernels_here,
    random_weight,
    read_by,
    self_test,
)
from weightpager.kernels import PagedWeight, PageNotResidentError, exact
from weightpager.kernels.choice import REFERENCE
from weightpager.kernels.torch import reference
from weightpager.page_dtype import ENCODINGS


@pytest.mark.parametrize("name", kernels.available())
def test_the_kernels_of_this_machine_pass(name: str) -> None:
    found = self_test(name, kernels_here()[name], cases())
    assert found.kernel == name
    assert found.failures == ()
    assert found.checks == len(read_by(name, cases())) > 30


def test_the_cases_are_the_same_for_the_same_seed() -> None:
    first, again, other = cases(1), cases(1), cases(2)
    assert all((a.expected == b.expected).all() for a, b in zip(first, again, strict=True))
    assert not any((a.expected == b.expected).all() for a, b in zip(first, other, strict=True))


RIGHT = kernels_here()[REFERENCE]


def negated(x: Values, weight: PagedWeight, bias: Values | None) -> Values:
    y = RIGHT(x, weight, bias)
    return y ^ 0x8000 if y.dtype == np.uint16 else -y


def forgetful(x: Values, weight: PagedWeight, bias: Values | None) -> Values:
    return RIGHT(x, weight, None)


def nothing(x: Values, weight: PagedWeight, bias: Values | None) -> Values:
    return np.full_like(RIGHT(x, weight, bias), 0x7FC0 if x.dtype == np.uint16 else np.nan)


def misshapen(x: Values, weight: PagedWeight, bias: Values | None) -> Values:
    return RIGHT(x, weight, bias).T


def raising(x: Values, weight: PagedWeight, bias: Values | None) -> Values:
    raise PageNotResidentError(7)


@pytest.mark.parametrize("kernel", [negated, forgetful, nothing, misshapen, raising])
def test_a_wrong_kernel_fails_everywhere(kernel: Kernel) -> None:
    found = self_test("wrong", kernel, cases())
    assert len(found.failures) == found.checks


def test_a_failure_names_the_product() -> None:
    def only_int8(x: Values, weight: PagedWeight, bias: Values | None) -> Values:
        y = RIGHT(x, weight, bias)
        return y + 1 if weight.dtype == "int8" and x.dtype == np.float32 else y

    found = self_test("wrong", only_int8, cases())
    assert len(found.failures) == found.checks // (2 * len(ENCODINGS))
    assert found.failures[0].startswith("1 float32 tokens, int8 blocks of 16x32: expected a relative error below 2e-04")
    assert "page 7" in self_test("wrong", raising, cases()).failures[0]


@pytest.mark.parametrize("dtype", ENCODINGS)
def test_a_random_weight_keeps_some_blocks_and_is_zero_elsewhere(dtype: str) -> None:
    weight = random_weight(200, 301, BlockShape(16, 32), dtype, np.random.default_rng(3))
    rows, columns = weight.grid
    assert 0 < weight.kept < rows * columns
    dense = reference.dense_weight(weight).float()
    assert (dense_weight(weight) == dense.numpy()).all()
    assert dense.shape == (200, 301)
    assert bool(dense.isfinite().all())
    padded = torch.nn.functional.pad(dense, (0, columns * 32 - 301, 0, rows * 16 - 200))
    used = padded.view(rows, 16, columns, 32).abs().amax((1, 3)) > 0
    assert int(used.sum()) == weight.kept


@pytest.mark.parametrize("name", kernels.available())
def test_float32_is_served_by_the_kernel_that_is_said_to(name: str) -> None:
    here = kernels_here()
    for case in read_by(name, cases()):
        by_bytes = case.weight.dtype == "int4" and len(case.x) <= 4  # in some kernels, which round it otherwise
        if case.x.dtype == np.float32 and not by_bytes:
            ours = here[name](case.x, case.weight, case.bias)
            assert (ours == here[exact(name)](case.x, case.weight, case.bias)).all()

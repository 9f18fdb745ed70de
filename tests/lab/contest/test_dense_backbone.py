"""The dense model in few bits: its layers compute what their numbers say, and every task gets its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weightpager.backends.torch.architecture import full_name
from weightpager.backends.torch.export import dense_weights
from weightpager.bundle import Bundle
from weightpager_lab.contest.figures import budget_for
from weightpager_lab.contest.prompt import prompt
from weightpager_lab.contest.rivals.backbone import write_quantised
from weightpager_lab.contest.rivals.methods import method
from weightpager_lab.contest.rivals.parameters import (
    GROUP,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    int4_groups,
    int8_rows,
    pack_int4,
    private,
    resident,
    takes_int4,
    wide,
)
from weightpager_lab.contest.rivals.rival import Setting
from weightpager_lab.contest.rivals.torch_rival import dense_module, tensors


def multiplied_int4(weight: torch.Tensor) -> torch.Tensor:
    numbers, scales = int4_groups(weight)
    return (numbers.view(len(weight), -1, GROUP) * scales.float()[:, :, None]).view(weight.shape)


def multiplied_int8(weight: torch.Tensor) -> torch.Tensor:
    numbers, scales = int8_rows(weight)
    return numbers * scales.float()[:, None]


@given(
    rows=st.integers(1, 6), groups=st.integers(1, 6), texts=st.integers(1, 40), bias=st.booleans(), seed=st.integers(0)
)
@settings(max_examples=25, deadline=None)
def test_an_int4_layer_computes_what_its_numbers_say(rows: int, groups: int, texts: int, bias: bool, seed: int) -> None:
    drawn = torch.Generator().manual_seed(seed % 2**31)
    weight = torch.randn(16 * rows, GROUP * groups, generator=drawn)
    added = torch.randn(16 * rows, generator=drawn).bfloat16() if bias else None
    x = torch.randn(2, texts, GROUP * groups, generator=drawn).bfloat16()
    found = Int4Linear(*pack_int4(*int4_groups(weight)), added)(x)
    wanted = linear(x.float(), multiplied_int4(weight), None if added is None else added.float())
    assert found.shape == wanted.shape
    assert float((found.float() - wanted).norm()) <= 0.02 * float(1 + wanted.norm())


def test_int4_is_as_close_as_a_searched_scale_brings_it() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    plain = weight.view(64, -1, GROUP)
    scale = plain.abs().amax(-1, keepdim=True) / 7
    nearest = ((plain / scale).round() * scale).view(64, 256)
    assert float((multiplied_int4(weight) - weight).norm()) < float((nearest - weight).norm())
    assert torch.equal(multiplied_int4(multiplied_int4(weight)), multiplied_int4(weight))
    assert torch.equal(multiplied_int4(torch.zeros(16, 64)), torch.zeros(16, 64))


def test_int8_layers_compute_what_their_numbers_say() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted = linear(x.float(), multiplied_int8(weight))
    assert float((Int8Linear(*int8_rows(weight), None)(x).float() - wanted).norm()) <= 0.02 * float(wanted.norm())
    ids = torch.tensor([[3, 63], [0, 3]])
    assert torch.equal(Int8Embedding(*int8_rows(weight))(ids), multiplied_int8(weight)[ids].bfloat16())


class Widest(TorchDispatchMode):
    """Knows the bytes of the largest tensor that any operation made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, _types: object, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.bytes = max([self.bytes, *(t.nbytes for t in tree_leaves(found) if isinstance(t, torch.Tensor))])
        return found


def test_a_large_table_is_rounded_in_little_memory() -> None:
    table = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    with Widest() as widest:
        numbers, scales = int8_rows(table)
    assert widest.bytes <= table.nbytes
    for rows in (slice(0, 5000), slice(5000, None)):
        own, own_scales = int8_rows(table[rows])
        assert torch.equal(numbers[rows], own)
        assert torch.equal(scales[rows], own_scales)


def test_only_what_the_product_takes_is_in_int4() -> None:
    assert takes_int4(torch.empty(48, 64))
    assert not takes_int4(torch.empty(30, 64))
    assert not takes_int4(torch.empty(48, 100))


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("domain", ["assistant_bundle", "wordy_bundle", "writer_bundle", "camera_bundle"])
def test_every_task_has_the_answers_of_the_quantised_model(
    dtype: str, domain: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = Bundle.open(request.getfixturevalue(domain))
    write_quantised(bundle, tmp_path, dtype, lambda *_: None)  # type: ignore[arg-type]
    rival = method(f"dense_{dtype}").make(Setting(bundle, tuple(bundle.tasks), tmp_path, budget_for(bundle, 1.0), 2))
    rounded = {
        f"{name}.weight": (multiplied_int4 if dtype == "int4" and takes_int4(weight) else multiplied_int8)(weight)
        for name, weight in dense_weights(bundle, next(iter(bundle.tasks))).items()
    }
    for task in bundle.tasks:
        values = {**wide(resident(bundle, dtype)), **private(bundle, task), **rounded}
        reference = dense_module(bundle, task, {name: value.float() for name, value in values.items()})
        inputs = tensors(bundle.task(task), prompt(bundle, task, 1))
        with torch.inference_mode():
            found, wanted = rival.switch(task)(**inputs).logits.float(), reference(**inputs).logits
        assert float((found - wanted).norm()) <= 0.05 * float(1 + wanted.norm()), task
    rival.close()


def test_no_table_is_left_in_bfloat16(writer_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(writer_bundle)
    write_quantised(bundle, tmp_path, "int4", lambda *_: None)
    task = next(iter(bundle.tasks))
    rival = method("dense_int4").make(Setting(bundle, (task,), tmp_path, budget_for(bundle, 1.0), 2))
    module = rival.switch(task)
    head, table = module.get_submodule("lm_head"), module.get_submodule(full_name(module, "base_model.embed_tokens"))
    assert isinstance(table, Int8Embedding)
    assert isinstance(head, nn.Linear)
    assert head.weight.data_ptr() == table.weight.data_ptr()
    rival.close()

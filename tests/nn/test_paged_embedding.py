"""`PagedEmbedding` and `Int8Embedding` against `torch.nn.Embedding` over the same values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from weightpager.bundle.format.row_table import decode_rows, encode_rows
from weightpager.kernels.rows import widen_rows
from weightpager.nn.embedding import Int8Embedding, PagedEmbedding

STORED = encode_rows(np.random.default_rng(0).standard_normal((30, 12)).astype(np.float32))
TABLE = torch.from_numpy(decode_rows(STORED))
IDS = torch.tensor([[1, 29, 0], [5, 5, 7]])


class Rows:
    """All rows in memory."""

    def look_up(self, ids: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
        if len(ids) and not 0 <= ids.min() <= ids.max() < 30:
            raise IndexError("index out of range")
        widen_rows(STORED.reshape(-1), ids * 14, np.arange(len(ids)), out)

    def all(self) -> npt.NDArray[np.float32]:
        return decode_rows(STORED)


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


@pytest.fixture(params=["paged", "int8"])
def layer(request: pytest.FixtureRequest, dtype: torch.dtype) -> nn.Module:
    if request.param == "paged":
        return PagedEmbedding(Rows(), 30, 12, dtype, padding_idx=0)
    return Int8Embedding(torch.from_numpy(STORED), dtype, padding_idx=0)


@pytest.mark.parametrize(
    "ids", [IDS, IDS[0], IDS.T, IDS.to(torch.int32), torch.tensor(3), torch.empty(0, 4, dtype=torch.long)]
)
def test_it_gives_what_an_embedding_gives(layer: nn.Module, dtype: torch.dtype, ids: torch.Tensor) -> None:
    plain = nn.Embedding.from_pretrained(TABLE.to(dtype))
    found = layer(ids)
    assert found.dtype == dtype
    assert torch.equal(found, plain(ids))
    assert not found.requires_grad
    assert torch.equal(layer.weight, plain.weight)


def test_rows_lie_on_the_host_whatever_the_default_device(dtype: torch.dtype) -> None:
    layer = PagedEmbedding(Rows(), 30, 12, dtype)
    with torch.device("meta"):
        found = layer(IDS)
    assert torch.equal(found, TABLE.to(dtype)[IDS])


def test_another_dtype_can_be_asked_for(layer: nn.Module) -> None:
    assert torch.equal(layer.to(torch.bfloat16)(IDS), TABLE.bfloat16()[IDS])


def test_it_has_no_parameters_and_keeps_what_it_is(layer: nn.Module) -> None:
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}
    assert layer.padding_idx == 0


def test_rows_that_arent_there_are_refused(layer: nn.Module) -> None:
    for wrong in (30, -1):
        with pytest.raises(IndexError):
            layer(torch.tensor([wrong]))


def test_ids_that_are_none_are_refused() -> None:
    layer = PagedEmbedding(Rows(), 30, 12, torch.float32)
    with pytest.raises(TypeError, match="int64 or int32"):
        layer(torch.tensor([1.0]))
    assert "30, 12, int8 in pages to torch.float32" in repr(layer)


def test_graphs_have_one_operation(dtype: torch.dtype) -> None:
    model = nn.Sequential(PagedEmbedding(Rows(), 30, 12, dtype), nn.ReLU())
    program = torch.export.export(model, (IDS,))
    assert "weightpager.paged_embedding" in str(program.graph)
    assert torch.equal(program.module()(IDS), model(IDS))
    assert torch.equal(torch.compile(model, backend="eager")(IDS), model(IDS))

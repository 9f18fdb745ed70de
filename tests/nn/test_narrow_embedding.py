from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

import weightpager as wp
from weightpager.nn.embedding import NarrowEmbedding, keep_tables_narrow

IDS = torch.tensor([[3, 0], [6, 3]])


class Scaled(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 2 * super().forward(ids)


def model(table: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 5, dtype=table), nn.LayerNorm(5), nn.Linear(5, 2)).requires_grad_(False)


def test_rows_come_wide_and_the_table_stays_narrow() -> None:
    table = torch.randn(7, 5, dtype=torch.bfloat16)
    layer = NarrowEmbedding(table, torch.float32)
    assert torch.equal(layer(IDS), table.float()[IDS])
    assert layer.table.data_ptr() == table.data_ptr()
    assert torch.equal(layer.weight, table.float())
    assert (layer.num_embeddings, layer.embedding_dim) == (7, 5)
    assert list(layer.parameters()) == []
    assert list(layer.state_dict()) == ["table"]
    assert torch.equal(copy.deepcopy(layer)(IDS), layer(IDS))


def test_it_changes_its_dtype_with_its_model() -> None:
    layer = NarrowEmbedding(torch.randn(7, 5, dtype=torch.bfloat16), torch.float32)
    assert layer.bfloat16()(IDS).dtype == torch.bfloat16
    assert layer.float()(IDS).dtype == torch.float32


def test_a_model_computes_with_narrow_tables_as_with_wide_ones() -> None:
    narrow, wide = model(), model().float()
    assert keep_tables_narrow(narrow, torch.float32) == 1
    assert isinstance(narrow[0], NarrowEmbedding)
    assert torch.equal(narrow(IDS), wide(IDS))


def test_what_needs_nothing_or_is_no_plain_embedding_stays() -> None:
    assert keep_tables_narrow(model().bfloat16(), torch.bfloat16) == 0
    assert keep_tables_narrow(model(torch.float32), torch.float32) == 0
    other = nn.Sequential(Scaled(7, 5), nn.Embedding(7, 5, max_norm=1.0)).bfloat16()
    assert keep_tables_narrow(other, torch.float32) == 0


def test_transformers_takes_the_model_for_what_it_computes_in(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task("animal") as module:
        words = module.get_input_embeddings()
        assert isinstance(words, NarrowEmbedding)
        assert words.table.dtype == torch.bfloat16
        assert module.dtype == torch.float32

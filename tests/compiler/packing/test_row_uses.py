"""How often texts use the rows of tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from weightpager.compiler import data as task_data
from weightpager.compiler.model import dense_model
from weightpager.compiler.packing import rows
from weightpager.compiler.task_file.file import from_dict


@pytest.mark.parametrize("length", [8, 16, 128])
def test_a_text_looks_up_as_many_positions_as_it_has_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(rows, "LEAST_BYTES", 1)
    content = tiny.writer(tmp_path, rows="on-demand", sparsity=0.5)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=32, n_layer=2, n_head=2, n_positions=128)).save_pretrained(
        content["model"]
    )
    for task in content["tasks"].values():
        task["max_length"] = length
    source = dense_model.load(from_dict(content))
    data = {
        name: task_data.load(name, spec, source.tokenizer, (), length) for name, spec in source.task_file.tasks.items()
    }
    choice = rows.choose_tables(source, data)
    assert {name.rpartition(".wpe")[1]: uses.lookups for name, uses in choice.tables.items()} == {".wpe": length}

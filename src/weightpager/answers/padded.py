"""Texts of different length in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.answers.work import Ids
from weightpager.readers.tokenizer import Tokenizer


def padded(module: nn.Module, texts: Sequence[Ids], pad: int, *, left: bool) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, int64 [texts, longest], on the module's device."""
    device: Any = module.device
    return {name: tensor.to(device) for name, tensor in token_inputs(texts, pad, left=left).items()}


def token_inputs(texts: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, int64 [texts, longest]."""
    mask = padded_rows([[1] * len(ids) for ids in texts], 0, left=left)
    return {"input_ids": padded_rows(texts, pad, left=left), "attention_mask": mask}


def padded_rows(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> Tensor:
    """Int64 [rows, longest]; what is shorter is filled on the right, or on the left."""
    longest = max(map(len, rows))
    found = torch.full((len(rows), longest), fill, dtype=torch.int64)
    for place, row in enumerate(rows):
        start = longest - len(row) if left else 0
        found[place, start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
    return found


def pad_id(module: nn.Module, tokenizer: Tokenizer) -> int:
    """A token id to pad with; it is masked, so that any will do that the model has."""
    embeddings: Any = module.get_input_embeddings()  # type: ignore[operator]
    named = (tokenizer.pad_id, tokenizer.end_id)
    # Tokenizers are given padding tokens that nobody has told the model of.
    return next((int(found) for found in named if found is not None and found < embeddings.num_embeddings), 0)

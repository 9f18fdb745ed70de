"""Texts of different length in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.answers.work import Ids


def padded(module: nn.Module, texts: Sequence[Ids], pad: int, *, left: bool) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, int64 [texts, longest], on the module's device."""
    longest = max(len(ids) for ids in texts)
    input_ids = torch.full((len(texts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(texts):
        place = slice(longest - len(ids), None) if left else slice(len(ids))
        input_ids[row, place] = torch.tensor(ids, dtype=torch.int64)
        mask[row, place] = 1
    device: Any = module.device
    return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}


def pad_id(module: nn.Module, tokenizer: Any) -> int:
    """A token id to pad with; it is masked, so that any will do that the model has."""
    embeddings: Any = module.get_input_embeddings()  # type: ignore[operator]
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    # Tokenizers are given padding tokens that nobody has told the model of.
    return next((int(found) for found in named if found is not None and found < embeddings.num_embeddings), 0)

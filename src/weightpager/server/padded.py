"""Texts of different length in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.bundle.reader import MODEL
from weightpager.errors import BundleFormatError
from weightpager.server.work import Ids


def padded(module: nn.Module, texts: Sequence[Ids], pad: int, *, left: bool) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, int64 [texts, longest].

    Raises:
        BundleFormatError: the tokenizer knows words that the model doesn't.
    """
    embeddings: Any = module.get_input_embeddings()  # type: ignore[operator]
    if max(max(ids, default=0) for ids in texts) >= embeddings.num_embeddings:
        wanted = f"ids below {embeddings.num_embeddings}, as the model has"
        raise BundleFormatError(f"{MODEL}/", "tokenizer", wanted, "larger ones")
    longest = max(len(ids) for ids in texts)
    input_ids = torch.full((len(texts), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(texts):
        place = slice(longest - len(ids), None) if left else slice(len(ids))
        input_ids[row, place] = torch.tensor(ids, dtype=torch.int64)
        mask[row, place] = 1
    device = embeddings.weight.device
    return {"input_ids": input_ids.to(device), "attention_mask": mask.to(device)}


def pad_id(tokenizer: Any) -> int:
    """A token id to pad with; it is masked, so that any will do where the tokenizer names none."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if found is None else int(found)

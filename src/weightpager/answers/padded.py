"""Texts of different length in one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightpager.answers.model import Integers
from weightpager.readers.tokenizer import Tokenizer


def padded(texts: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> dict[str, Integers]:
    """``input_ids`` and ``attention_mask``, int64 [texts, longest]."""
    mask = padded_rows([[1] * len(ids) for ids in texts], 0, left=left)
    return {"input_ids": padded_rows(texts, pad, left=left), "attention_mask": mask}


def padded_rows(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> Integers:
    """Rows as int64 [rows, longest]; shorter ones are filled on the right, or on the left."""
    longest = max(map(len, rows))
    array = np.full((len(rows), longest), fill, np.int64)
    for place, row in enumerate(rows):
        start = longest - len(row) if left else 0
        array[place, start : start + len(row)] = row
    return array


def pad_id(vocab_size: int, tokenizer: Tokenizer) -> int:
    """A token id to pad with. Padding is masked, so any id that the model has will do."""
    named = (tokenizer.pad_id, tokenizer.end_id)
    # Tokenizers are given padding tokens that nobody has told the model of.
    return next((number for number in named if number is not None and number < vocab_size), 0)

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
import weightpager as wp
from weightpager.answers.padded import pad_id, padded


@pytest.mark.parametrize(("left", "ids"), [(True, [[0, 5], [6, 7]]), (False, [[5, 0], [6, 7]])])
def test_short_texts_are_padded_and_masked(assistant_bundle: Path, left: bool, ids: list[list[int]]) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task("weather") as module:
        found = padded(module, [(5,), (6, 7)], 0, left=left)
        assert found["input_ids"].tolist() == ids
        assert torch.equal(found["attention_mask"], (found["input_ids"] != 0).long())
        tokenizer = tiny.tokenizer()
        assert pad_id(module, tiny.reader(tokenizer)) == 0
        tokenizer.add_special_tokens({"pad_token": "[NEW]"})  # the model has no such word
        assert tokenizer.pad_token_id == 16
        assert pad_id(module, tiny.reader(tokenizer)) == 0

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tiny
import weightpager as wp
from weightpager.answers.query import pad_id, padded


@pytest.mark.parametrize(("left", "ids"), [(True, [[0, 5], [6, 7]]), (False, [[5, 0], [6, 7]])])
def test_short_texts_are_padded_and_masked(left: bool, ids: list[list[int]]) -> None:
    found = padded([(5,), (6, 7)], 0, left=left)
    assert found["input_ids"].tolist() == ids
    assert np.array_equal(found["attention_mask"], found["input_ids"] != 0)


def test_a_word_that_the_model_lacks_is_no_padding(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        tokenizer, words = tiny.tokenizer(), engine.model("weather").vocab_size
        assert pad_id(words, tiny.reader(tokenizer)) == 0
        tokenizer.add_special_tokens({"pad_token": "[NEW]"})
        assert tokenizer.pad_token_id == 16
        assert pad_id(words, tiny.reader(tokenizer)) == 0

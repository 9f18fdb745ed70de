"""A batch of prompts of a decoder that looks its positions up in a table, which has an end."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import OPTForCausalLM

import tiny
from weightpager.answers.generation.completions import completions
from weightpager.answers.padded import padded
from weightpager.answers.work import Generate
from weightpager.backends.torch.torch_model import TorchModel


@pytest.mark.parametrize(("tokens", "room", "most"), [(2, 12, 8), (6, 12, 6), (11, 12, 1), (12, 12, 1), (20, 12, 1)])
def test_a_continuation_ends_where_there_is_no_more_room(tokens: int, room: int, most: int) -> None:
    assert Generate((4,) * tokens, 8).within(room) == Generate((4,) * tokens, most)


def test_prompts_that_leave_little_room_are_answered_as_each_alone(tmp_path: Path) -> None:
    model, reader = TorchModel(OPTForCausalLM.from_pretrained(tiny.opt(tmp_path)).eval()), tiny.reader()
    assert model.context == 32
    words = [["red"] * 2, ["cat"] * 30, ["dog", "sun"] * 12, ["one"] * 30, ["snow"] * 31, ["two"] * 5]
    prompts = [tuple(tiny.WORDS.index(word) + 4 for word in each) for each in words]
    answers = completions(model, reader, padded(prompts, 0, left=True), 8)
    alone = [completions(model, reader, padded([prompt], 0), min(8, 32 - len(prompt)))[0] for prompt in prompts]
    assert answers == alone
    lengths = [len(reader.encode(answer, special=False).ids) for answer in answers]
    assert all(length <= min(8, 32 - len(each)) for length, each in zip(lengths, words, strict=True))

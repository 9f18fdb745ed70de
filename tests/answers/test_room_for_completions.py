"""Batches of prompts: how many run together, and which, so that each is answered as if it were alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import OPTForCausalLM, Phi3Config, Phi3ForCausalLM

import tiny
from weightpager.answers.decoding import GrowingTexts
from weightpager.answers.generation import completions
from weightpager.answers.model import Integers, PlacedFeatures
from weightpager.answers.query import padded
from weightpager.answers.work import Generate, Sampling
from weightpager.backends.torch.torch_model import TorchModel


class WatchedModel(TorchModel):
    """Keeps the prompts of each batch that was begun."""

    begun: list[Integers]

    def grow(
        self,
        ids: Integers,
        mask: Integers,
        sampling: Sampling,
        pad: int,
        most: int | None = None,
        placed: PlacedFeatures | None = None,
    ) -> GrowingTexts:
        self.begun.append(ids)
        return super().grow(ids, mask, sampling, pad, most, placed)


def opt(folder: Path) -> WatchedModel:
    model = WatchedModel(OPTForCausalLM.from_pretrained(tiny.opt(folder)).eval())
    model.begun = []
    return model


@pytest.mark.parametrize(("tokens", "room", "most"), [(2, 12, 8), (6, 12, 6), (11, 12, 1), (12, 12, 1), (20, 12, 1)])
def test_a_continuation_ends_where_there_is_no_more_room(tokens: int, room: int, most: int) -> None:
    assert Generate((4,) * tokens, 8).within(room) == Generate((4,) * tokens, most)


def test_prompts_that_leave_little_room_are_answered_as_each_alone(tmp_path: Path) -> None:
    model, reader = opt(tmp_path), tiny.reader()
    assert model.context == 32
    words = [["red"] * 2, ["cat"] * 30, ["dog", "sun"] * 12, ["one"] * 30, ["snow"] * 31, ["two"] * 5]
    prompts = [tuple(tiny.WORDS.index(word) + 4 for word in each) for each in words]
    answers = completions(model, reader, padded(prompts, 0, left=True), 8)
    alone = [completions(model, reader, padded([prompt], 0), min(8, 32 - len(prompt)))[0] for prompt in prompts]
    assert answers == alone
    lengths = [len(reader.encode(answer, special=False).ids) for answer in answers]
    assert all(length <= min(8, 32 - len(each)) for length, each in zip(lengths, words, strict=True))


def test_caches_hold_no_more_than_their_bound(tmp_path: Path) -> None:
    model, reader = opt(tmp_path), tiny.reader()
    lengths = [24, 3, 10, 28] * 70  # those of 28 tokens leave room for four more
    prompts = [tuple(4 + (length + place) % 12 for place in range(length)) for length in lengths]
    answers = completions(model, reader, padded(prompts, 0, left=True), 8)
    alone = {prompt: completions(model, reader, padded([prompt], 0), 8)[0] for prompt in set(prompts)}
    assert answers == [alone[prompt] for prompt in prompts]
    begun = [ids.shape for ids in model.begun[: -len(alone)]]
    assert begun == [(113, 10), (64, 24), (33, 24), (64, 28), (6, 28)]  # with up to eight more, 2,048 at most


def test_a_text_that_is_longer_than_the_bound_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.answers.batches.CACHED_TOKENS", 24)
    model, reader = opt(tmp_path), tiny.reader()
    completions(model, reader, padded([(4,) * length for length in (20, 4, 20, 4)], 0, left=True), 8)
    assert [ids.shape for ids in model.begun] == [(2, 4), (1, 20), (1, 20)]


def test_a_long_prompt_does_not_change_how_short_ones_are_answered() -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [8.0] * 8}
    config = Phi3Config(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32, vocab_size=16,
        pad_token_id=0, bos_token_id=2, eos_token_id=3, initializer_range=0.5, max_position_embeddings=64,
        original_max_position_embeddings=16, rope_scaling={"type": "longrope", **rope},
    )  # fmt: skip
    model, reader = TorchModel(Phi3ForCausalLM(config).eval()), tiny.reader()
    assert model.limits.uniform_length == 16
    # Those of 3 and 8 tokens stay within 16, those of 12 pass it while they grow, and those of 20 before.
    sizes = [(length, step) for length in (3, 8, 12, 20) for step in (5, 7)]
    prompts = [tuple(4 + (place * step) % 12 for place in range(length)) for length, step in sizes]
    answers = completions(model, reader, padded(prompts, 0, left=True), 8)
    assert answers == [completions(model, reader, padded([prompt], 0), 8)[0] for prompt in prompts]

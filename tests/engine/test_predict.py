"""What a task's module is asked, and what it answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig, RobertaModel

import tiny
import weightpager as wp
from weightpager.engine.architecture import context_length
from weightpager.engine.predict import predict
from weightpager.errors import ConfigError


@pytest.mark.parametrize("said", [None, 12])
def test_no_more_is_generated_than_model_and_tokenizer_can_read(writer_bundle: Path, said: int | None) -> None:
    with wp.Engine.from_pretrained(writer_bundle) as engine:
        module, tokenizer = engine.activate("numbers"), engine.tokenizer()
        tokenizer.model_max_length = said or int(1e30)
        most = said or module.config.max_position_embeddings
        task, prompt = engine.bundle.task("numbers"), "one two"
        assert predict(module, tokenizer, task, [prompt], max_new_tokens=most - 2)
        with pytest.raises(ConfigError, match=f"at most {most} tokens, as the model can read, found 2 and {most - 1}"):
            predict(module, tokenizer, task, [prompt], max_new_tokens=most - 1)


def test_positions_behind_the_padding_are_not_read() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = RobertaConfig(**sizes, vocab_size=len(tiny.WORDS), max_position_embeddings=12, pad_token_id=0)
    module = RobertaModel(config)
    most = context_length(module, tiny.tokenizer())
    assert most == 11
    module(torch.full((1, most), 4))
    with pytest.raises((IndexError, RuntimeError)):
        module(torch.full((1, most + 1), 4))

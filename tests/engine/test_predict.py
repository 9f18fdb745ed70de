"""What a task's module is asked, and what it answers."""

from __future__ import annotations

from pathlib import Path

import pytest

import weightpager as wp
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

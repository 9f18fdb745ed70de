"""A tokenizer of transformers, as readers of task data ask it, or as a device will read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers

from weightpager.readers.tokenizer import NO_DEFAULT, Encoded, Tokenizer, begin_ids


@dataclass(frozen=True)
class TransformersTokens:
    """Tokens by a fast tokenizer. Implements `weightpager.task_data.texts.TextTokens`."""

    tokenizer: Any

    @property
    def begin_ids(self) -> tuple[int, ...]:
        return begin_ids(self.tokenizer.backend_tokenizer)

    @property
    def end_id(self) -> int | None:
        found: int | None = self.tokenizer.eos_token_id
        return found

    def encode_all(self, texts: Sequence[str], *, most: int | None = None, special: bool = True) -> list[Encoded]:
        encoded = self.tokenizer(
            list(texts),
            truncation=most is not None,
            max_length=most,
            add_special_tokens=special,
            verbose=False,
        )
        return [Encoded.of(found) for found in encoded.encodings]


def reader_of(tokenizer: Any) -> Tokenizer:
    """What a device reads of a tokenizer of transformers."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", NO_DEFAULT)
    settings = {"model_max_length": tokenizer.model_max_length, "split_special_tokens": tokenizer.split_special_tokens}
    return Tokenizer(inner, {**tokenizer.special_tokens_map, **settings}, template)

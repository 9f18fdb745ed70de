"""`TransformersTokens`: a tokenizer of transformers, as readers of task data ask it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightpager.readers.tokenizer import Encoded


@dataclass(frozen=True)
class TransformersTokens:
    """See `weightpager.task_data.texts.TextTokens`; of a fast tokenizer."""

    tokenizer: Any

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
            return_offsets_mapping=True,
            verbose=False,
        )
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [Encoded(tuple(ids), tuple(spans)) for ids, spans in pairs]

"""The text of tokens that follow others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_CONTEXT = 8
"""Tokens of a prompt that are decoded together with what follows: more than make up one character."""

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What decoders give for bytes that don't make up a character yet."""


def decoder_after(tokenizer: Any, prompt: Sequence[int]) -> Callable[[Sequence[int]], str]:
    """Decodes what follows a prompt, special tokens left out.

    A token's text may depend on what stands before it: many decoders drop the blank that a text's first word begins
    with, so that nobody could tell a new word from the rest of the prompt's last one.

    Args:
        tokenizer: of the model.
        prompt: token ids.
    """

    def decode(ids: Sequence[int]) -> str:
        # Tidying blanks before punctuation would change what has been said already, and isn't what was generated.
        text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    context = list(prompt[-_CONTEXT:])
    before = decode(context)
    if not before or before.endswith(INCOMPLETE):
        return decode

    def decode_after(ids: Sequence[int]) -> str:
        text = decode([*context, *ids])
        # As long as a character is incomplete, some decoders take back those that its bytes follow.
        return text[len(before) :] if text.startswith(before) else decode(ids)

    return decode_after

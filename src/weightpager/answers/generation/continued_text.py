"""The text of tokens that follow others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from weightpager.readers.tokenizer import Tokenizer

_CONTEXT = 8
"""Tokens of a prompt that are decoded together with what follows, or more if need be."""

CHARACTER = 4
"""Bytes that a character has at most, and so the tokens that it may be spread over."""

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What decoders give for bytes that don't make up a character yet."""


Decode = Callable[[Sequence[int]], str]


def decoder_after(tokenizer: Tokenizer, prompt: Sequence[int]) -> Decode:
    """Decodes what follows a prompt, special tokens left out.

    A token's text may depend on what stands before it: many decoders drop the blank that a text's first word begins
    with, so that nobody could tell a new word from the rest of the prompt's last one. Where the prompt ends in the
    middle of a character, that whole character follows, once it is complete.

    Args:
        tokenizer: of the model.
        prompt: token ids.
    """
    decode = tokenizer.decode
    context = _context(decode, prompt)
    befores = [decode(context), decode(_complete(decode, context))]

    def decode_after(ids: Sequence[int]) -> str:
        text = decode([*context, *ids])
        for before in befores:
            if text.startswith(before):
                return text[len(before) :]
        return decode(ids)  # as long as a character is incomplete, some decoders take back those that its bytes follow

    return decode_after


def _context(decode: Decode, prompt: Sequence[int]) -> list[int]:
    """The last tokens of a prompt that decode as they do in the whole: to a text that begins with a whole character."""
    for length in _lengths(len(prompt)):
        context = list(prompt[-length:])
        text = decode(_complete(decode, context))
        if text and not text.startswith(INCOMPLETE):
            return context
    return list(prompt)


def _lengths(most: int) -> Iterator[int]:
    """Lengths of contexts to try, below ``most``: one token more for a character, then twice as many each time."""
    yield from range(_CONTEXT, min(_CONTEXT + CHARACTER, most))
    length = 2 * _CONTEXT
    while length < most:
        yield length
        length *= 2


def _complete(decode: Decode, ids: Sequence[int]) -> Sequence[int]:
    """Tokens without those of a last character whose end is missing; all where there is none."""
    whole = (ids[: len(ids) - begun] for begun in range(min(CHARACTER - 1, len(ids)) + 1))
    return next((some for some in whole if not decode(some).endswith(INCOMPLETE)), ids)

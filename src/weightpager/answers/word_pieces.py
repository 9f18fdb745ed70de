"""Which word a tokenizer's piece begins."""

from __future__ import annotations

from collections.abc import Sequence


def word_starts(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int | None]:
    """For every piece the number of the word whose first piece it is, None for any other.

    ``spans`` are the pieces' characters in the words joined by blanks. Byte-level tokenizers refuse words that are
    split already, and some count a blank to the piece after it: so a piece belongs to the word of its last character.
    """
    owner: list[int | None] = []
    for number, word in enumerate(words):
        owner += [number] * len(word) + [None]
    starts: list[int | None] = []
    last = None
    for start, end in spans:
        word_number = owner[end - 1] if end > start else None
        starts.append(None if word_number == last else word_number)
        last = last if word_number is None else word_number
    return starts

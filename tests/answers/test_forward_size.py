"""How many tokens of a text are read before others may have a turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weightpager.answers.model import ACTIVATION_BYTES, FORWARD_TOKENS, Activations

SMALL = Activations.of_layer(576, 1536, 0, 4)
"""Of a decoder of 135 million weights, whose attention keeps no scores."""


def pieces(texts: int, length: int) -> list[tuple[int, int]]:
    """How many tokens each piece has, and up to which it reads."""
    found, read = list[tuple[int, int]](), 0
    while read < length:
        tokens = SMALL.piece(texts, read, length)
        read += tokens
        found.append((tokens, read))
    return found


@given(st.integers(1, 8), st.integers(1, 8192))
def test_a_piece_of_a_long_text_takes_hardly_longer_than_one_of_a_short(texts: int, length: int) -> None:
    for tokens, read in pieces(texts, length):
        assert texts * tokens * read <= 2**19 or tokens <= 16
        assert texts * tokens <= FORWARD_TOKENS
        assert SMALL.bytes(texts, tokens, read) <= ACTIVATION_BYTES


def test_short_prompts_are_read_at_once_and_long_ones_in_few_pieces() -> None:
    assert pieces(8, 120) == [(120, 120)]
    assert [tokens for tokens, _ in pieces(1, 7900)][:16] == [128] * 16
    assert len(pieces(1, 7900)) < 100

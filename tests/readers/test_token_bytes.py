"""What tokens stand for, by tokenizers of bytes and others."""

from __future__ import annotations

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

import tiny_pairs
from weightpager.readers.token_bytes import TokenBytes

BYTEWISE = {"byte-level": tiny_pairs.by_level(), "byte fallback": tiny_pairs.by_fallback()}
MARKS = ["<s>", "</s>"]


@pytest.mark.parametrize("name", BYTEWISE)
@given(text=st.text(st.sampled_from("the red fox ü∑🤖\n{}")))
def test_texts_are_their_tokens_bytes(name: str, text: str) -> None:
    inner = BYTEWISE[name]
    words = TokenBytes(inner)
    ids = inner.encode(text, add_special_tokens=False).ids
    assert words.exact
    assert b"".join(map(words.of, ids)).decode() == text == inner.decode(ids)


def test_special_tokens_are_told_by_their_names() -> None:
    words = TokenBytes(tiny_pairs.by_level())
    assert [words.of(number) for number in (0, 1)] == [mark.encode() for mark in MARKS]
    assert {0, 1} <= words.special
    assert words.of(10**6) == b""


@pytest.mark.parametrize(
    ("decoder", "word", "expected"),
    [
        (decoders.Metaspace(), "▁the", b" the"),
        (decoders.WordPiece(), "##s", b"##s"),
        (None, "the", b"the"),
        (decoders.Sequence([decoders.Metaspace(), decoders.Fuse()]), "<0x41>", b"<0x41>"),
    ],
)
def test_words_of_other_tokenizers_are_told_as_they_are(
    decoder: decoders.Decoder | None, word: str, expected: bytes
) -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({word: 0}, unk_token=word))
    if decoder is not None:
        inner.decoder = decoder
    assert not TokenBytes(inner).exact
    assert TokenBytes(inner).of(0) == expected

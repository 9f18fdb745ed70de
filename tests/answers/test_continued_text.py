"""What follows a prompt, by decoders whose texts depend on what stands before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
import tokenizers
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

import tiny
from weightpager.answers.generation import INCOMPLETE, Continuation, decoder_after
from weightpager.readers.tokenizer import Tokenizer

WORDS = ["▁the", "▁cap", "ital", "▁of", "▁is", "▁Paris", "s", ",", "▁"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def bytes_of(text: str) -> list[str]:
    return [BYTES[byte] for byte in text.encode()]


def tokenizer_of(pieces: Sequence[Sequence[str]], decoder: decoders.Decoder) -> Tokenizer:
    """A tokenizer whose tokens are those of some pieces."""
    tokens = dict.fromkeys(["<s>", *chain(*pieces)])
    plain = tokenizers.Tokenizer(models.WordLevel({token: n for n, token in enumerate(tokens)}, unk_token="<s>"))
    plain.decoder = decoder
    plain.add_special_tokens(["<s>"])
    return Tokenizer(plain, {}, None)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One that decodes as those of Llama 2 do."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return tokenizer_of([WORDS, BYTES], decoders.Sequence(steps))


@pytest.fixture(scope="module")
def others() -> dict[str, tuple[Tokenizer, list[list[str]]]]:
    """Tokenizers of other kinds, each with pieces of text as its tokens."""
    words = [[word] for word in WORDS]
    pieces = [[word] for word in ("the", "##s", "is", ",", "'", "a", "##ing")]
    suffixed = [[word] for word in ("the</w>", "ca", "p</w>", "is</w>", ",</w>")]
    unicode = bytes_to_unicode()
    level = [*(["Ġthe"], ["is"], ["Ġ"], [","]), *([unicode[byte] for byte in one.encode()] for one in "é∑🤖")]
    gemma = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return {
        "metaspace": (tokenizer_of(words, decoders.Metaspace()), words),
        "byte-level": (tokenizer_of(level, decoders.ByteLevel()), level),
        "word pieces": (tokenizer_of(pieces, decoders.WordPiece()), pieces),
        "suffixes": (tokenizer_of(suffixed, decoders.BPEDecoder()), suffixed),
        "gemma": (
            tokenizer_of([*words, BYTES], decoders.Sequence(gemma)),
            [*words, *(bytes_of(one) for one in "é∑🤖 ")],
        ),
    }


def ids(tokenizer: Tokenizer, *words: str) -> list[int]:
    return [number for word in words if (number := tokenizer._inner.token_to_id(word)) is not None]


def test_a_new_word_begins_with_its_blank(tokenizer: Tokenizer) -> None:
    after = decoder_after(tokenizer, ids(tokenizer, "<s>", "▁the", "▁cap"))
    assert after(ids(tokenizer, "ital", "▁is", "▁Paris")) == "ital is Paris"
    assert after(ids(tokenizer, "▁is")) == " is"
    assert decoder_after(tokenizer, ids(tokenizer, "<s>"))(ids(tokenizer, "▁is")) == "is"


def check(tokenizer: Tokenizer, whole: list[int], place: int) -> None:
    """A prompt that ends with a whole character, and what follows, give the whole text, in one go and bit by bit."""
    prompt, rest = whole[:place], whole[place:]
    said, text = tokenizer.decode(prompt), tokenizer.decode(whole)
    assume(not said.endswith(INCOMPLETE))
    decode = decoder_after(tokenizer, prompt)
    assert said + decode(rest) == text
    growing, shown = Continuation(decode, len(rest), [], {}), ""
    for token in rest:
        shown += growing.add(token)
        assert text.startswith(said + shown)
    assert shown == decode(rest)


@given(
    words=st.lists(st.sampled_from([*WORDS, "<s>"]), max_size=12),
    text=st.text(st.sampled_from("aé∑🤖 "), max_size=12),
    more=st.lists(st.sampled_from([*WORDS, "<s>"]), max_size=3),
    place=st.integers(0, 40),
)
@example(words=["▁the"], text="ééé∑ ", more=[], place=10)  # the context began in the middle of a character
@example(words=["▁"], text="", more=["▁is"], place=1)  # a prompt of a blank has no text yet
@example(words=["s", *["<s>"] * 8], text="", more=["▁is"], place=9)  # nor has a context of special tokens
def test_a_prompt_and_its_continuation_make_up_the_whole_text(
    tokenizer: Tokenizer, words: list[str], text: str, more: list[str], place: int
) -> None:
    check(tokenizer, ids(tokenizer, *words, *bytes_of(text), *more), place)


@pytest.mark.parametrize("kind", ["metaspace", "byte-level", "word pieces", "suffixes", "gemma"])
@given(data=st.data())
def test_tokenizers_of_other_kinds_make_up_the_whole_text_too(
    others: dict[str, tuple[Tokenizer, list[list[str]]]], kind: str, data: st.DataObject
) -> None:
    tokenizer, pieces = others[kind]
    drawn = data.draw(st.lists(st.sampled_from([*pieces, ["<s>"]]), max_size=24))
    whole = ids(tokenizer, *(token for piece in drawn for token in piece))
    check(tokenizer, whole, data.draw(st.integers(0, len(whole))))


@given(
    prompt=st.lists(st.sampled_from([["▁the"], ["s"], bytes_of("é"), bytes_of("🤖")]), max_size=12),
    after=st.lists(st.sampled_from(["▁is", "s", "<s>"]), max_size=3),
    character=st.sampled_from("é∑🤖"),
    place=st.integers(1, 3),
)
def test_a_character_that_a_prompt_only_begins_follows_whole(
    tokenizer: Tokenizer, prompt: list[list[str]], after: list[str], character: str, place: int
) -> None:
    before, spelt = ids(tokenizer, *chain(*prompt)), ids(tokenizer, *bytes_of(character))
    rest = [*spelt[place:], *ids(tokenizer, *after)]
    assume(place < len(spelt))
    decode = decoder_after(tokenizer, [*before, *spelt[:place]])
    whole = tokenizer.decode([*before, *spelt, *ids(tokenizer, *after)])
    assert tokenizer.decode(before) + decode(rest) == whole


def test_blanks_before_punctuation_stay_as_they_were_said() -> None:
    words = {word: number for number, word in enumerate(["I", "'", "m", "here", "."])}
    plain = tokenizers.Tokenizer(models.WordLevel(words, unk_token="."))
    tidying = tiny.reader(PreTrainedTokenizerFast(tokenizer_object=plain, clean_up_tokenization_spaces=True))
    growing, shown = Continuation(decoder_after(tidying, [3]), 5, [], {}), ""
    for token in (0, 1, 2, 3, 4):
        shown += growing.add(token)
    assert shown == growing.outcome().text == " I ' m here ."

"""What follows a prompt, by decoders whose texts depend on what stands before."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from weightpager.engine.continued_text import decoder_after
from weightpager.server.continuation import Continuation

WORDS = ["▁the", "▁cap", "ital", "▁of", "▁is", "▁Paris", "s", ","]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One that decodes as those of Llama 2 do."""
    vocabulary = {word: number for number, word in enumerate(["<s>", *WORDS, *BYTES])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    plain.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>")


def ids(tokenizer: PreTrainedTokenizerFast, *words: str) -> list[int]:
    return tokenizer.convert_tokens_to_ids(list(words))


def test_a_new_word_begins_with_its_blank(tokenizer: PreTrainedTokenizerFast) -> None:
    after = decoder_after(tokenizer, ids(tokenizer, "<s>", "▁the", "▁cap"))
    assert after(ids(tokenizer, "ital", "▁is", "▁Paris")) == "ital is Paris"
    assert after(ids(tokenizer, "▁is")) == " is"
    assert decoder_after(tokenizer, ids(tokenizer, "<s>"))(ids(tokenizer, "▁is")) == "is"


@given(data=st.data(), text=st.text(st.sampled_from("aé∑🤖 "), max_size=6))
def test_a_prompt_and_its_continuation_make_up_the_whole_text(
    tokenizer: PreTrainedTokenizerFast, data: st.DataObject, text: str
) -> None:
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
    whole = ids(tokenizer, *words, *(f"<0x{byte:02X}>" for byte in text.encode()))
    place = data.draw(st.integers(1, len(whole)))
    prompt, rest = whole[:place], whole[place:]
    assume(not tokenizer.decode(prompt).endswith("\N{REPLACEMENT CHARACTER}"))
    decode = decoder_after(tokenizer, prompt)
    assert tokenizer.decode(prompt) + decode(rest) == tokenizer.decode(whole)
    growing, shown = Continuation(decode, len(rest), [], {}), ""
    for token in rest:
        shown += growing.add(token)
        assert tokenizer.decode(whole).startswith(tokenizer.decode(prompt) + shown)
    assert shown == decode(rest)


def test_blanks_before_punctuation_stay_as_they_were_said() -> None:
    words = {word: number for number, word in enumerate(["I", "'", "m", "here", "."])}
    plain = Tokenizer(models.WordLevel(words, unk_token="."))
    tidying = PreTrainedTokenizerFast(tokenizer_object=plain, clean_up_tokenization_spaces=True)
    assert tidying.decode([0, 1, 2, 3]) == "I'm here"
    growing, shown = Continuation(decoder_after(tidying, [3]), 5, [], {}), ""
    for token in (0, 1, 2, 3, 4):
        shown += growing.add(token)
    assert shown == growing.outcome().text == " I ' m here ."

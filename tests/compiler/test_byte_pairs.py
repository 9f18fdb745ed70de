"""Vocabularies of byte pairs with fewer tokens."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import tiny_models
import tiny_pairs
from weightpager.compiler.byte_pairs import BytePairs
from weightpager.errors import CompileError

WHOLE = {"level": tiny_pairs.by_level(), "fallback": tiny_pairs.by_fallback()}
WORDS = sorted({word for text in tiny_pairs.TEXTS for word in text.split()})
SOME = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


def smaller(pairs: BytePairs, kept: list[int]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(
        json.dumps(pairs.renumbered({number: place for place, number in enumerate(kept)}))
    )


def pairs_of(inner: tokenizers.Tokenizer) -> BytePairs:
    return BytePairs.of(tiny_pairs.tokenizer(inner), "here")


@pytest.mark.slow
@pytest.mark.parametrize("which", WHOLE)
@given(seen=st.lists(SOME, max_size=4), other=st.text(max_size=20), most=st.integers(0, 200))
def test_texts_that_were_seen_have_the_same_tokens_and_others_the_same_text(
    which: str, seen: list[str], other: str, most: int
) -> None:
    whole = WHOLE[which]
    pairs = pairs_of(whole)
    counts = Counter(token for text in seen for token in whole.encode(text).ids)
    kept = pairs.kept(counts, ())
    fewer = smaller(pairs, kept)
    for text in seen:
        assert fewer.encode(text).tokens == whole.encode(text).tokens
        assert [kept[number] for number in fewer.encode(text).ids] == whole.encode(text).ids
    least = len(pairs.kept({}, ()))
    fewest = smaller(pairs, pairs.kept(counts, (), least + most))
    assert fewest.get_vocab_size() <= least + most
    for text in (*seen, other):
        assert fewer.decode(fewer.encode(text).ids) == whole.decode(whole.encode(text).ids)
        assert fewest.decode(fewest.encode(text).ids) == whole.decode(whole.encode(text).ids)


def test_the_most_frequent_tokens_stay() -> None:
    whole = WHOLE["level"]
    pairs, least = pairs_of(whole), len(pairs_of(whole).kept({}, ()))
    counts = Counter(token for text in [" fox"] * 9 + [" runs"] for token in whole.encode(text).ids)
    words = smaller(pairs, pairs.kept(counts, (), least + 3)).get_vocab()
    assert "Ġfox" in words
    assert "Ġruns" not in words


@pytest.mark.parametrize("more", [20, 80, 10_000])
def test_where_texts_have_fewer_tokens_those_that_are_joined_first_fill_up(more: int) -> None:
    whole = WHOLE["level"]
    pairs = pairs_of(whole)
    counts = Counter(whole.encode(" fox").ids)
    bytes_and_marks, least = len(pairs.kept({}, ())), len(pairs.kept(counts, ()))
    kept = pairs.kept(counts, (), least + more)
    fewer = smaller(pairs, kept)
    assert len(kept) == min(least + more, whole.get_vocab_size())
    first = [token for token, _ in sorted(pairs.ids.items(), key=lambda named: named[1])]
    assert set(first[: bytes_and_marks + more]) <= fewer.get_vocab().keys()
    assert fewer.encode(" fox").tokens == whole.encode(" fox").tokens
    if more > 1000:
        for text in tiny_pairs.TEXTS:
            assert fewer.encode(text).tokens == whole.encode(text).tokens


def test_what_is_named_stays() -> None:
    pairs = pairs_of(WHOLE["level"])
    number = pairs.ids["Ġhill"]
    assert number in pairs.kept({}, [number])
    assert number not in pairs.kept({}, [])


def test_fewer_tokens_than_bytes_and_marks_are_refused() -> None:
    pairs = pairs_of(WHOLE["level"])
    with pytest.raises(CompileError, match=r"tokens: expected at least 260, .* found 259"):
        pairs.kept({}, [], 259)


def test_tokenizers_that_do_not_join_pairs_are_refused() -> None:
    with pytest.raises(CompileError, match=r"here: expected a tokenizer of byte pairs \(BPE\), found WordPiece"):
        BytePairs.of(tiny_models.tokenizer(), "here")


def test_tokenizers_that_know_some_characters_only_are_refused() -> None:
    inner = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator(tiny_pairs.TEXTS, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>"]))
    with pytest.raises(CompileError, match="that can spell any text by its bytes"):
        BytePairs.of(PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>"), "here")

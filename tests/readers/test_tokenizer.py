from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import tiny
from interrupted import Steps, stepped
from weightpager.errors import BundleFormatError
from weightpager.readers.tokenizer import ANY_LENGTH, Tokenizer, read_tokenizer

TEXTS = [
    "The cat's dog isn't here, is it?",
    "über naïve façade",
    "日本語 テキスト",
    "a\tb\n\n c",
    "🤖🤖 x",
    "[CLS] <s> </s>",
]


def word_piece() -> PreTrainedTokenizerFast:
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner.train_from_iterator(TEXTS * 4, trainers.WordPieceTrainer(vocab_size=80, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16)


def byte_level() -> PreTrainedTokenizerFast:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    inner.train_from_iterator(TEXTS * 4, own)
    named = {"bos_token": "<s>", "eos_token": "</s>", "truncation_side": "left"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, add_bos_token=True, **named)


def metaspace() -> PreTrainedTokenizerFast:
    inner = tokenizers.Tokenizer(models.Unigram())
    inner.normalizer = normalizers.NFKC()
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    own = trainers.UnigramTrainer(vocab_size=80, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    inner.train_from_iterator(TEXTS * 4, own)
    found = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")
    found.add_tokens(["new word"])
    return found


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[PreTrainedTokenizerFast, Tokenizer]]:
    """Tokenizers that transformers reads from their files, and those that a device reads from the same."""
    found = []
    for make in (tiny.tokenizer, word_piece, byte_level, metaspace):
        folder = tmp_path_factory.mktemp("tokenizer")
        make().save_pretrained(folder)
        found.append((AutoTokenizer.from_pretrained(folder), read_tokenizer(folder)))
    return found


@given(
    text=st.text(max_size=40) | st.sampled_from([*TEXTS, "red cat new word"]),
    most=st.none() | st.integers(4, 12),
    special=st.booleans(),
)
def test_ids_are_those_of_transformers(
    pairs: list[tuple[PreTrainedTokenizerFast, Tokenizer]], text: str, most: int | None, special: bool
) -> None:
    for wanted, tokenizer in pairs:
        options = {"truncation": most is not None, "max_length": most, "add_special_tokens": special}
        expected = wanted(text, return_offsets_mapping=True, **options)
        found = tokenizer.encode(text, most=most, special=special)
        assert list(found.ids) == expected["input_ids"]
        assert list(found.spans) == expected["offset_mapping"]
        assert found.cut == len(tokenizer.encode(text, special=special).ids) - len(found.ids)
        plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        assert tokenizer.decode(found.ids) == wanted.decode(found.ids, **plain)
        assert tokenizer.copy().encode(text, special=special) == tokenizer.encode(text, special=special)


@given(text=st.text(min_size=1, max_size=40) | st.sampled_from(TEXTS), chat=st.booleans())
def test_a_prompt_begins_as_with_transformers_and_does_not_end(
    pairs: list[tuple[PreTrainedTokenizerFast, Tokenizer]], text: str, chat: bool
) -> None:
    for wanted, tokenizer in pairs:
        alone = tuple(wanted(text, add_special_tokens=False)["input_ids"])
        around = tuple(wanted(text)["input_ids"])
        assert tokenizer.prompt(text, bos=False) == alone
        found = tokenizer.prompt(text, bos=True, chat=chat)  # none of them has a chat template
        assert found == (around[: len(tokenizer.begin_ids) + len(alone)] if alone else ())
        assert tokenizer.copy().prompt(text, bos=True) == found


@pytest.mark.parametrize(
    ("single", "begin"), [("$A", ()), ("$A [SEP]", ()), ("[CLS] $A", (2,)), ("[SEP] [CLS] $A [SEP]", (3, 2))]
)
def test_what_is_put_in_front_of_a_text(single: str, begin: tuple[int, ...]) -> None:
    own = tiny.tokenizer()
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    reader = tiny.reader(own)
    assert reader.begin_ids == begin
    assert reader.prompt("red", bos=True) == (*begin, 4)
    reader.chat_template = tiny.TEMPLATE
    assert reader.prompt("red", bos=True, chat=True) == (4,)  # the template writes what begins a conversation


def test_copies_share_the_vocabulary_and_nothing_that_changes(
    pairs: list[tuple[PreTrainedTokenizerFast, Tokenizer]],
) -> None:
    for _, tokenizer in pairs:
        text = " ".join(TEXTS)
        whole = tokenizer.encode(text)
        copy = tokenizer.copy()
        assert len(copy.encode(text, most=4).ids) == 4 < len(whole.ids)
        assert tokenizer.encode(text) == whole == tokenizer.copy().encode(text)


def test_what_a_tokenizer_says_of_itself(pairs: list[tuple[PreTrainedTokenizerFast, Tokenizer]]) -> None:
    for wanted, tokenizer in pairs:
        assert (tokenizer.pad_id, tokenizer.end_id) == (wanted.pad_token_id, wanted.eos_token_id)
        assert tokenizer.longest == min(wanted.model_max_length, ANY_LENGTH)
        assert tokenizer.special == wanted.special_tokens_map


def test_templates_of_every_version_are_found(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    several = [{"name": "rag", "template": "c"}, {"name": "default", "template": "b"}]
    for stated, found in (("a", "a"), (several, "b"), (None, None)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": stated}))
        assert read_tokenizer(tmp_path).chat_template == found
    assert "no default one" in (_template_of(tmp_path, {"chat_template": several[:1]}) or "")
    assert _template_of(tmp_path, {"eos_token": {"content": "[SEP]"}}) is None
    assert read_tokenizer(tmp_path).end_id == 3
    (tmp_path / "chat_template.jinja").write_text("d")
    assert read_tokenizer(tmp_path).chat_template == "d"


def _template_of(folder: Path, settings: dict[str, object]) -> str | None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return read_tokenizer(folder).chat_template


def test_files_that_are_no_tokenizer_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match=r"model/tokenizer\.json.*found none"):
        read_tokenizer(tmp_path)
    random.seed(0)
    tiny.tokenizer().save_pretrained(tmp_path)
    content = (tmp_path / "tokenizer.json").read_text()
    for damaged in ("{}", content[: len(content) // 2], content.replace('"WordLevel"', '"Telepathy"')):
        (tmp_path / "tokenizer.json").write_text(damaged)
        with pytest.raises(BundleFormatError, match="that the tokenizers library can read"):
            read_tokenizer(tmp_path)


@stepped
def test_what_a_signal_handler_raises_is_no_damage(tmp_path: Path) -> None:
    def too_late(*_: object) -> None:
        raise TimeoutError

    tiny.tokenizer().save_pretrained(tmp_path)
    before, steps, late = signal.signal(signal.SIGALRM, too_late), Steps(signal.SIGALRM), 0
    try:
        while not steps.is_over:
            steps.at += 7
            try:
                steps("read", lambda: read_tokenizer(tmp_path))
            except TimeoutError:
                late += 1
    finally:
        signal.signal(signal.SIGALRM, before)
    assert late > 10


def test_a_tokenizer_that_panics_raises_an_error(tmp_path: Path) -> None:
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0, " ": 1}, unk_token="a"))
    inner.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 1)])
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path)
    with pytest.raises(RuntimeError, match="a library panicked"):
        tokenizer.decode([1])
    assert tokenizer.decode([0]) == "a"

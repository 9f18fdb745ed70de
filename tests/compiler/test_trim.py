"""Decoders with the tokens alone that their tasks use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
)

import tiny
import tiny_llava
import tiny_models
import tiny_pairs
import tiny_tiles
import weightpager as wp
from command import Command
from weightpager.compiler import vocabulary_tables
from weightpager.compiler.byte_pairs import BytePairs
from weightpager.compiler.data import reader_of
from weightpager.compiler.model.directory import ModelDirectory
from weightpager.compiler.model.picture_tower import picture_reader, pictures_of
from weightpager.compiler.task_file.file import TaskFile, from_dict
from weightpager.compiler.trim import trim
from weightpager.errors import CompileError, ConfigError

ASKED = ["the red fox", "the green hill"]


def trimmed(folder: Path, **config: Any) -> tuple[Path, Path]:
    """A model, and the same with fewer tokens."""
    model = tiny_pairs.llama(folder / "whole", **config)
    return model, trim(from_dict(tiny_pairs.tasks(folder, model)), folder / "small").path


def logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_texts_of_the_tasks_are_computed_as_before(tmp_path: Path, tied: bool) -> None:
    whole, small = trimmed(tmp_path, tie_word_embeddings=tied)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (whole, small))
    reads, again = (AutoTokenizer.from_pretrained(path) for path in (whole, small))
    assert len(again) == after.config.vocab_size == after.lm_head.weight.shape[0] < len(reads)
    assert (after.lm_head.weight is after.model.embed_tokens.weight) == tied
    number = reads.get_vocab()
    kept = torch.tensor([number[token] for token in sorted(again.get_vocab(), key=again.get_vocab().__getitem__)])
    for text in ASKED:
        ours, theirs = again(text)["input_ids"], reads(text)["input_ids"]
        assert again.convert_ids_to_tokens(ours) == reads.convert_ids_to_tokens(theirs)
        torch.testing.assert_close(logits(after, ours), logits(before, theirs)[:, kept])


@pytest.mark.parametrize("most", [None, 262])
def test_texts_that_are_cut_inside_a_character(tmp_path: Path, most: int | None) -> None:
    content = tiny_pairs.tasks(tmp_path, tiny_pairs.llama(tmp_path / "whole"))
    for split in ("train", "eval"):
        (tmp_path / f"{split}.txt").write_text("the \U0001f642\U0001f642 fox " * 20, encoding="utf-8")
    files = {split: str(tmp_path / f"{split}.txt") for split in ("train", "eval")}
    content["tasks"] = {"prose": {"kind": "language-modeling", **files, "max_length": 8}}
    assert trim(from_dict(content), tmp_path / "small", most).after <= (most or 420)


@pytest.mark.parametrize("most", [None, 300])
def test_what_is_left_behind_the_last_window_is_kept_too(tmp_path: Path, most: int | None) -> None:
    """With fewer tokens it is longer, and would be a window that no token was kept for."""
    model = tiny_pairs.llama(tmp_path / "whole")
    content, reads = tiny_pairs.tasks(tmp_path, model), AutoTokenizer.from_pretrained(model)
    text = "the fox " * 284 + "nobody wonders, Hügel under sleeper; runner Grün Fuchs [1, 2]"
    assert 9 * 63 <= len(reads(text, add_special_tokens=False)["input_ids"]) < 10 * 63
    files = {split: tmp_path / f"{split}.txt" for split in ("train", "eval")}
    for file in files.values():
        file.write_text(text, encoding="utf-8")
    stated = {split: str(file) for split, file in files.items()}
    content["tasks"] = {"prose": {"kind": "language-modeling", **stated, "max_length": 64}}
    small = trim(from_dict(content), tmp_path / "small", most)
    again = AutoTokenizer.from_pretrained(small.path)
    assert again.decode(again(text, add_special_tokens=False)["input_ids"]) == text
    if most is None:
        assert again.tokenize(text) == reads.tokenize(text)
        assert small.tasks["prose"].before == small.tasks["prose"].after


@pytest.mark.slow
def test_more_tokens_than_the_texts_have_shorten_others(tmp_path: Path) -> None:
    content = tiny_pairs.tasks(tmp_path, tiny_pairs.llama(tmp_path / "whole"))
    row = {"prompt": "the runner wonders under nobody", "completion": "sleeper"}
    tiny_models.jsonl(tmp_path / "fox.eval.jsonl", [row])
    used = trim(from_dict(content), tmp_path / "used")
    filled = trim(from_dict(content), tmp_path / "filled", used.after + 40)
    assert filled.after == used.after + 40
    assert filled.tasks["fox"].after < used.tasks["fox"].after
    assert filled.tasks["hill"].after == filled.tasks["hill"].before


@pytest.mark.slow
def test_a_prompt_that_no_longer_fits_says_why(tmp_path: Path) -> None:
    content = tiny_pairs.tasks(tmp_path, tiny_pairs.llama(tmp_path / "whole"))
    row = {"prompt": "the runner wonders under nobody; the sleeper runs", "completion": "runs"}
    tiny_models.jsonl(tmp_path / "fox.eval.jsonl", [row])
    content["tasks"]["fox"]["max_length"] = 32
    with pytest.raises(CompileError, match=r"raise max_length.* With fewer tokens in the vocabulary texts take more"):
        trim(from_dict(content), tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.slow
def test_a_tokenizer_that_reads_texts_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = BytePairs.renumbered

    def unjoined(pairs: BytePairs, new: dict[int, int]) -> dict[str, Any]:
        file = whole(pairs, new)
        return {**file, "model": {**file["model"], "merges": []}}

    monkeypatch.setattr(BytePairs, "renumbered", unjoined)
    with pytest.raises(CompileError, match=r"reads a text of tasks\.fox otherwise with fewer tokens"):
        trimmed(tmp_path)
    assert not (tmp_path / "small").exists()


@pytest.mark.slow
def test_whatever_names_tokens_names_them_still(tmp_path: Path) -> None:
    own = tiny_pairs.tokenizer(tiny_pairs.by_level())
    last = len(own) - 1  # an ordinary token that no text has
    whole, small = trimmed(tmp_path, own=own, eos_token_id=[1, last])
    reads, again = (AutoTokenizer.from_pretrained(path) for path in (whole, small))
    config = AutoModelForCausalLM.from_pretrained(small).config
    assert again.convert_ids_to_tokens(config.eos_token_id) == reads.convert_ids_to_tokens([1, last])
    assert config.pad_token_id == again.pad_token_id
    assert GenerationConfig.from_pretrained(small).eos_token_id == again.eos_token_id
    said = [{"role": "user", "content": "the fox"}]
    assert again.apply_chat_template(said, tokenize=False) == reads.apply_chat_template(said, tokenize=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        GPT2LMHeadModel(GPT2Config(vocab_size=420, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
        PhiForCausalLM(
            PhiConfig(vocab_size=420, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        ),
    ],
    ids=["layers on their side", "a head with a bias"],
)
def test_other_decoders(tmp_path: Path, model: PreTrainedModel) -> None:
    tiny_pairs.llama(tmp_path / "whole")  # for its tokenizer
    model.save_pretrained(tmp_path / "whole")
    trim(from_dict(tiny_pairs.tasks(tmp_path, tmp_path / "whole")), tmp_path / "small", most=270)
    reads, again = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("whole", "small"))
    words = sorted(again.get_vocab(), key=again.get_vocab().__getitem__)
    kept = torch.tensor([reads.get_vocab()[token] for token in words])
    ids = again("under the hill")["input_ids"]
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(logits(small, ids), logits(model.eval(), kept[ids].tolist())[:, kept])


@pytest.mark.slow
def test_it_is_compiled_and_answers(tmp_path: Path) -> None:
    _, small = trimmed(tmp_path)
    wp.compile(from_dict(tiny_pairs.tasks(tmp_path, small)), out=tmp_path / "small.bundle")
    with wp.Engine.from_pretrained(tmp_path / "small.bundle") as engine:
        assert engine.model("fox").vocab_size == len(AutoTokenizer.from_pretrained(small))
        assert engine.predict("fox", ["an unseen Füchslein"], max_new_tokens=2)


def test_a_model_that_computes_by_tokens_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return torch.full((len(tokens), model.config.vocab_size), float(self.calls))

    monkeypatch.setattr(vocabulary_tables, "_logits", Odd())
    with pytest.raises(CompileError, match="that knows tokens by their rows of its tables alone"):
        trimmed(tmp_path)
    assert not (tmp_path / "small").exists()


def broken(folder: Path, how: str) -> TaskFile:
    model = tiny_pairs.llama(folder / "whole")
    content = tiny_pairs.tasks(folder, model)
    if how == "word pieces":
        content["model"] = str(tiny_models.llama(folder / "pieces"))
    if how == "a token more":
        own = tiny_pairs.tokenizer(tiny_pairs.by_level())
        words = len(own)
        own.add_special_tokens({"pad_token": "<new>"})
        tiny_pairs.llama(folder / "whole", own=own, vocab_size=words)
    if how == "checkpoint":
        content["tasks"] = {"fox": {**content["tasks"]["fox"], "checkpoint": str(model)}}
    return from_dict(content)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("word pieces", "expected a tokenizer of byte pairs"),
        ("a token more", "whole: expected words that the model knows, with ids below .*, found '<new>'"),
        ("checkpoint", r"tasks.fox.checkpoint: expected none, found .*whole"),
        ("there", "out: .*small exists; choose another name"),
        ("nowhere", "out: expected a directory to write into"),
    ],
)
def test_what_cannot_be_trimmed_is_said(tmp_path: Path, how: str, message: str) -> None:
    out = tmp_path / ("missing/small" if how == "nowhere" else "small")
    if how == "there":
        out.mkdir()
    with pytest.raises((CompileError, ConfigError), match=message):
        trim(broken(tmp_path, how), out)
    assert not (out / "config.json").exists()


def test_tasks_that_read_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected tasks that read texts"):
        trim(from_dict(tiny.camera(tmp_path)), tmp_path / "small")


@pytest.mark.slow
def test_what_generation_names_stays(tmp_path: Path) -> None:
    whole = tiny_pairs.llama(tmp_path / "whole")
    last = len(AutoTokenizer.from_pretrained(whole)) - 1  # an ordinary token that no text has
    GenerationConfig(eos_token_id=[1, last]).save_pretrained(whole)
    small = trim(from_dict(tiny_pairs.tasks(tmp_path, whole)), tmp_path / "small").path
    reads, again = (AutoTokenizer.from_pretrained(path) for path in (whole, small))
    found = GenerationConfig.from_pretrained(small).eos_token_id
    assert again.convert_ids_to_tokens(found) == reads.convert_ids_to_tokens([1, last])


@pytest.mark.slow
def test_data_are_warned_of_once(tmp_path: Path, weightpager: Command) -> None:
    content = tiny_pairs.tasks(tmp_path, tiny_pairs.llama(tmp_path / "whole"))
    row = {"prompt": "the fox", "completion": "runs " * 80}
    tiny_models.jsonl(tmp_path / "fox.train.jsonl", [row] * 8)
    (tmp_path / "tasks.yaml").write_text(json.dumps(content), encoding="utf-8")
    told = weightpager("trim", tmp_path / "tasks.yaml", "--out", tmp_path / "small")
    assert told.code == 0
    assert " ".join(told.err.split()).count("completions are cut at max_length") == 1


@pytest.mark.slow
def test_the_command(tmp_path: Path, weightpager: Command) -> None:
    content = tiny_pairs.tasks(tmp_path, tiny_pairs.llama(tmp_path / "whole"))
    (tmp_path / "tasks.yaml").write_text(json.dumps(content), encoding="utf-8")
    told = weightpager("trim", tmp_path / "tasks.yaml", "--out", tmp_path.parent / "sm all #1")
    assert told.code == 0
    assert "parameters instead of" in told.out
    assert f"'model: \"../sm all #1\"' in {tmp_path / 'tasks.yaml'}" in "".join((told.out + told.err).split("\n"))
    found = weightpager("trim", tmp_path / "tasks.yaml", "--out", tmp_path / "few", "--tokens", 270, "--json")
    values = json.loads(found.out)
    assert 260 <= values["after"] <= 270
    assert values["tasks"]["fox"]["before"] < values["tasks"]["fox"]["after"]
    few = weightpager("trim", tmp_path / "tasks.yaml", "--out", tmp_path / "none", "--tokens", 3)
    assert few.code == 1
    assert "tokens: expected at least 260" in few.err


def test_ids_inside_other_settings_are_renumbered_too() -> None:
    extra = {"audio_token_id": 5, "parts": [{"bad_token_ids": [[5, 6], 7]}], "id2label": {"x_token_id": 5}}
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, extra=extra
    )
    assert vocabulary_tables.named_ids(config, "here") >= {5, 6, 7}
    model = LlamaForCausalLM(config).eval()
    vocabulary_tables.keep_rows(model, {1: 0, 2: 1, 5: 2, 6: 3, 7: 4}, "here")
    assert config.extra == {
        "audio_token_id": 2,
        "parts": [{"bad_token_ids": [[2, 3], 4]}],
        "id2label": extra["id2label"],
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x_token_id": {"a": 1}}, "here: x_token_id: expected ids of tokens, found {'a': 1}"),
        ({"part": {"x_token_id": "five"}}, "here: part.x_token_id: expected ids of tokens, found 'five'"),
        ({"x_token_ids": [1, True]}, "here: x_token_ids: expected ids of tokens, found True"),
        ({"x_token_index": 1.0}, "here: x_token_index: expected ids of tokens, found 1.0"),
    ],
)
def test_what_names_no_ids_where_some_should_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError, match=re.escape(message)):
        vocabulary_tables.ids_in(settings, "here")
    with pytest.raises(CompileError, match=re.escape(message)):
        vocabulary_tables.renumbered(settings, {1: 0}, "here")


def test_lists_of_lists_name_ids() -> None:
    settings = {"bad_token_ids": [[1, 2], []], "pad_token_id": None, "eos_token_id": -1}
    assert vocabulary_tables.ids_in(settings, "here") == {-1, 1, 2}
    renumbered = vocabulary_tables.renumbered(settings, {2: 1}, "here")
    assert renumbered == {"bad_token_ids": [[1, 1], []], "pad_token_id": None, "eos_token_id": -1}


class _Placed(NamedTuple):
    """What `PictureReader.placed` asks for."""

    tokens: int
    tiles: tuple[int, int]


def test_words_between_tiles_stay(tmp_path: Path) -> None:
    """Texts of the tasks have no pictures, or pictures of other tiles: their words would be spelled by others."""
    grids = [(row, column) for row in range(1, tiny_tiles.A_SIDE + 1) for column in range(1, tiny_tiles.A_SIDE + 1)]
    reads = tiny_pairs.tokenizer(tiny_pairs.by_level([*tiny_tiles.MARKS, tiny_tiles.WHOLE, "fox\n\n"]))
    reads.add_special_tokens({"additional_special_tokens": [tiny_tiles.IMAGE, tiny_tiles.BORDER]})
    config = tiny_tiles.config(image_token_id=reads.convert_tokens_to_ids(tiny_tiles.IMAGE), pad_token_id=3)
    text = config.text_config
    text.vocab_size, text.bos_token_id, text.eos_token_id, text.pad_token_id = len(reads), 0, 1, 3
    whole = tiny_llava.written(tmp_path / "whole", tiny_tiles.model(config), reads, tiny_tiles.processor())
    small = trim(from_dict(tiny_pairs.tasks(tmp_path, whole)), tmp_path / "small").path

    def words(folder: Path) -> list[list[str]]:
        directory = ModelDirectory.open(folder)
        tokenizer, images = directory.tokenizer(), directory.images()
        pictures = pictures_of(AutoModelForImageTextToText.from_pretrained(folder), tokenizer, images, folder)
        found = reader_of(tokenizer, picture_reader(images, pictures)).pictures
        assert found is not None
        placed = [found.placed([pictures.token_id], [_Placed(0, grid)]) for grid in grids]
        return [tokenizer.convert_ids_to_tokens(ids) for ids in placed]

    assert words(small) == words(whole)
    assert len(AutoTokenizer.from_pretrained(small)) < len(reads)


@pytest.mark.parametrize("most", [None, 300])
def test_pictures_stay_in_their_places(tmp_path: Path, most: int | None) -> None:
    """The placeholder's number is named by other keys than texts' tokens, some inside the language model's settings."""
    reads = tiny_pairs.tokenizer(tiny_pairs.by_level())
    reads.add_special_tokens({"additional_special_tokens": [tiny_llava.IMAGE]})
    place = reads.convert_tokens_to_ids(tiny_llava.IMAGE)
    config = tiny_llava.config(image_token_index=place)
    text = config.text_config
    text.vocab_size, text.bos_token_id, text.eos_token_id, text.pad_token_id = len(reads) + 3, 0, 1, 3
    text.image_token_id = place
    whole = tiny_llava.llava(tmp_path / "llava")
    tiny_llava.model(config).save_pretrained(whole)
    reads.save_pretrained(whole)
    processor = {"processor_class": "LlavaProcessor", "image_token_id": place, "more": {"unused_token_id": place - 1}}
    (whole / "processor_config.json").write_text(json.dumps(processor))
    tasks = {
        "animal": tiny_llava.asking(tmp_path, "animal", {"red": "the red fox", "blue": "the green hill"}, 8)
        | {"max_length": 64}
    }
    found = trim(from_dict({"model": str(whole), "tasks": tasks}), tmp_path / "small", most)
    small = tmp_path / "small"
    again, after = AutoTokenizer.from_pretrained(small), AutoModelForImageTextToText.from_pretrained(small).eval()
    before = AutoModelForImageTextToText.from_pretrained(whole).eval()
    new = again.convert_tokens_to_ids(tiny_llava.IMAGE)
    assert new < place
    assert (after.config.image_token_id, after.config.text_config.image_token_id) == (new, new)
    assert after.config.text_config.vocab_size == found.after == len(again)
    assert (small / "preprocessor_config.json").is_file()
    unused = again.convert_tokens_to_ids(reads.convert_ids_to_tokens(place - 1))
    numbers = {"image_token_id": new, "more": {"unused_token_id": unused}}
    assert json.loads((small / "processor_config.json").read_text()) == processor | numbers
    prompt = tiny_llava.IMAGE * tiny_llava.TOKENS + "the red fox"
    pixels = torch.randn(1, 3, tiny_llava.SIDE, tiny_llava.SIDE)
    number = reads.get_vocab()
    kept = torch.tensor([number[token] for token in sorted(again.get_vocab(), key=again.get_vocab().__getitem__)])
    with torch.inference_mode():
        ours, theirs = (
            model(**reader(prompt, return_tensors="pt", return_token_type_ids=False), pixel_values=pixels).logits
            for model, reader in ((after, again), (before, reads))
        )
    torch.testing.assert_close(ours, theirs[..., kept])

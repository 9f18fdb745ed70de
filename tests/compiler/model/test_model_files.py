"""What of a model directory goes into a bundle beside weights, and comes out of it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, GenerationConfig

import tiny
import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_file, rewrite_manifest
from weightpager.backends.torch.export import export_task
from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler import task_file
from weightpager.compiler.model import dense_model
from weightpager.errors import BundleFormatError

PROMPT = {"input_ids": torch.tensor([[4, 9, 12]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
STOPS = [3, *range(4, 16)]


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """Of a task file whose model pads on the left and names its stops beside its configuration only."""
    content = tiny.writer(tmp_path)
    model = Path(content["model"])
    generation = GenerationConfig(eos_token_id=STOPS, pad_token_id=0, do_sample=True, temperature=0.7, num_beams=3)
    generation.save_pretrained(model)
    settings = model / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"padding_side": "left"}))
    return content


@pytest.fixture
def path(tmp_path: Path, content: dict[str, Any]) -> Path:
    wp.compile(content, out=tmp_path / "w.bundle")
    return tmp_path / "w.bundle"


def test_a_decoder_stops_where_its_directory_says(path: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(path)
    task = next(iter(bundle.tasks))
    plain = AutoModelForCausalLM.from_pretrained(export_task(bundle, task, tmp_path / "out"))
    with wp.Engine(bundle, wp.config.EngineConfig()) as engine, engine.task(task) as module:
        for found in (module.generation_config, plain.generation_config):
            assert (found.eos_token_id, found.do_sample, found.temperature) == (STOPS, True, 0.7)
            assert found.num_beams in (None, 1)  # asks for memory that a budget doesn't know
        options = {"max_new_tokens": 8, "do_sample": False}
        assert module.generate(**PROMPT, **options).tolist() == plain.generate(**PROMPT, **options).tolist()
        assert module.generate(**PROMPT, **options).shape[1] < 3 + 8


def test_the_dense_model_writes_by_what_the_bundle_keeps(content: dict[str, Any], tmp_path: Path) -> None:
    more = GenerationConfig(eos_token_id=STOPS, no_repeat_ngram_size=2, suppress_tokens=[5], stop_strings=["x"])
    more.save_pretrained(content["model"])
    for model in dense_model.load(task_file.from_dict(content, tmp_path)).models.values():
        found = model.generation_config
        assert found is not None
        assert found.eos_token_id == STOPS
        assert not found.no_repeat_ngram_size
        assert not found.suppress_tokens
        assert found.stop_strings is None


def test_it_stays_so_when_the_bundle_grows_and_shrinks(path: Path, content: dict[str, Any], tmp_path: Path) -> None:
    more = tiny.text(tmp_path, "more", tiny.WORDS[6:9])
    grown = {key: content[key] for key in ("model", "calibration")} | {"tasks": {"more": more}}
    wp.compile(grown, base=path, out=path, force=True)
    collect(path, drop=["animals"])
    with wp.Engine.from_pretrained(path) as engine:
        assert [engine.module(task).generation_config.eos_token_id for task in engine.bundle.tasks] == [STOPS, STOPS]


@pytest.mark.slow
def test_it_stops_there_too_where_a_bundle_had_no_decoding_task_before(content: dict[str, Any], tmp_path: Path) -> None:
    animal = tiny.classification(tmp_path, "animal", {"cat": ["cat"], "dog": ["dog"]})
    settings = {"training": {"steps": 2, "batch": 4}}
    base = wp.compile({**content, **settings, "tasks": {"animal": animal}}, out=tmp_path / "base.bundle")
    grown = wp.compile(content, out=tmp_path / "grown.bundle", base=base.path)
    with wp.Engine.from_pretrained(grown.path) as engine:
        assert engine.module("numbers").generation_config.eos_token_id == STOPS
    # What its head is tied to is listed, as in a bundle that had it from the beginning.
    assert read_report(grown).tied == {"base_model.embed_tokens.weight": ["lm_head.weight"]}


def test_settings_that_nothing_reads_are_left_out(tmp_path: Path) -> None:
    content = tiny.writer(tmp_path)
    settings = {"eos_token_id": 5, "temperature": 0.6, "do_sample": False}
    (Path(content["model"]) / "generation_config.json").write_text(json.dumps(settings))
    bundle = wp.compile(content, out=tmp_path / "w.bundle")
    exported = export_task(bundle, next(iter(bundle.tasks)), tmp_path / "out")
    assert GenerationConfig.from_pretrained(exported).eos_token_id == 5


def test_an_export_states_the_most_tokens_of_a_tasks_answers(path: Path, tmp_path: Path) -> None:
    generation = {"prompts": "plain", "max_new_tokens": 12, "metrics": ["exact-match"]}
    rewrite_manifest(path, lambda m: m["tasks"][0].update(kind="text-generation", generation=generation))
    writes, other = Bundle.open(path).tasks
    most = [
        GenerationConfig.from_pretrained(export_task(Bundle.open(path), task, tmp_path / task)).max_new_tokens
        for task in (writes, other)
    ]
    assert most == [12, None]


def test_settings_that_a_bundle_may_not_have_are_refused(path: Path) -> None:
    file = "model/generation_config.json"
    rewrite_file(path, file, json.dumps(json.loads((path / file).read_text()) | {"num_beams": 10**6}).encode())
    with pytest.raises(BundleFormatError, match="generation_config.json: keys: expected only .* found num_beams"):
        wp.Engine.from_pretrained(path)


def test_the_tokenizer_pads_as_its_directory_says_and_cuts_nothing(path: Path, content: dict[str, Any]) -> None:
    with wp.Engine.from_pretrained(path) as engine:
        tokenizer = engine.tokenizer()
    assert tokenizer.padding_side == "left"
    text = "cat dog " * 40
    plain = Tokenizer.from_file(str(Path(content["model"]) / "tokenizer.json"))
    assert Tokenizer.from_file(str(path / "model" / "tokenizer.json")).encode(text).ids == plain.encode(text).ids

"""Tasks with a checkpoint of their own: what they share, what is private, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call
from transformers import BertForSequenceClassification, BertModel

import tiny
import tiny_llava
import tiny_models
import weightpager as wp
from weightpager.backends.torch.architecture import BASE, quiet_transformers
from weightpager.bundle.footprint import footprint
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler import task_file
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.own_weights import SHARED, group
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.prepare import prepare
from weightpager.compiler.resume.identities import compile_identity
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.training.masks import Masks, module_name
from weightpager.errors import CompileError, ConfigError

CLASSES = {"animal": ["cat", "dog"], "weather": ["sun", "rain"], "number": ["one", "two"], "sky": ["snow", "blue"]}
MOVED = "encoder.layer.1.output.dense.weight"


def checkpoint(folder: Path, base: Path, classes: list[str], moves: dict[str, float], seed: int = 0) -> str:
    """The base under a head, with each tensor in ``moves`` shifted by that much of its size."""
    with quiet_transformers():
        model = BertForSequenceClassification.from_pretrained(base, id2label=dict(enumerate(classes)))
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.bert.load_state_dict(BertModel.from_pretrained(base).state_dict())
        for name, share in moves.items():
            tensor = model.bert.get_parameter(name)
            noise = torch.randn(tensor.shape, generator=drawn)
            tensor += noise * (share * tensor.norm() / noise.norm() + (0.1 if tensor.ndim == 1 else 0.0))
    tiny.tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def content(folder: Path, **moves: dict[str, float]) -> dict[str, Any]:
    """A task file of one task per checkpoint; those without moves have the model's own base."""
    base = tiny.bert(folder / "bert")
    tasks = {}
    for name, moved in moves.items():
        words = CLASSES[name]
        tasks[name] = tiny.classification(folder, name, {word: [word] for word in words}) | {
            "checkpoint": checkpoint(folder / name, base, words, moved)
        }
    calibration = {"items": 16, "max_length": 16, "batch": 8}
    return {
        "model": str(base),
        "block": "8x16",
        "dtype": "bfloat16",
        "sparsity": 0.5,
        "calibration": calibration,
        "tasks": tasks,
    }


def load(entries: dict[str, Any]) -> DenseModel:
    return sources.load(task_file.from_dict(entries))


def test_what_agrees_is_shared_and_what_does_not_is_private(tmp_path: Path) -> None:
    norm = "encoder.layer.0.output.LayerNorm.weight"
    entries = content(tmp_path, animal={}, weather={MOVED: 0.3, norm: 0.0, "encoder.layer.0.output.dense.weight": 1e-4})
    source = load(entries)
    assert source.classes("weather") == ("sun", "rain")
    assert set(source.versions) == {BASE + MOVED.removesuffix(".weight")}
    versions = source.versions[BASE + MOVED.removesuffix(".weight")]
    assert (versions == [SHARED, 1]).all()
    animal, weather = source.parameters("animal"), source.parameters("weather")
    own = {name for name, tensor in weather.items() if tensor is not animal[name]}
    assert own == {BASE + MOVED, BASE + norm, "classifier.weight", "classifier.bias"}
    theirs = load_file(tmp_path / "weather" / "model.safetensors")
    for name in own:
        wanted = theirs[name.replace(BASE, "bert.")]
        torch.testing.assert_close(weather[name].detach(), wanted, rtol=0, atol=0)


def test_some_blocks_of_a_weight_are_shared(tmp_path: Path) -> None:
    entries = content(tmp_path, animal={}, weather={})
    file = tmp_path / "weather" / "model.safetensors"
    tensors = load_file(file)
    tensors["bert." + MOVED][:8, :16] *= 2
    save_file(tensors, file, {"format": "pt"})
    source = load(entries)
    (versions,) = source.versions.values()
    assert np.flatnonzero(versions[:, 1] != SHARED).tolist() == [0]
    assert (versions[:, 0] == SHARED).all()


@pytest.mark.slow
def test_checkpoints_that_agree_share_a_version(tmp_path: Path) -> None:
    source = load(content(tmp_path, animal={}, weather={MOVED: 0.5}, number={MOVED: 0.5}))
    (versions,) = source.versions.values()
    assert (versions == [SHARED, 1, 1]).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.2]))
def test_groups_keep_within_the_tolerance(seed: int, tolerance: float) -> None:
    random = np.random.default_rng(seed)
    base = random.standard_normal((12, 4)).astype(np.float32)
    own = {
        task: (base + random.choice([0, 0.01, 0.1, 1], (12, 1)) * random.standard_normal((12, 4))).astype(np.float32)
        for task in (1, 2, 4)
    }
    versions, values = group(base, own, 5, tolerance)
    assert (versions[:, [0, 3]] == SHARED).all()
    for task, blocks in own.items():
        for block, version in enumerate(versions[:, task]):
            theirs = base[block] if version == SHARED else own[int(version)][block]
            assert (values[task][block] == theirs).all()
            assert version in (SHARED, task) or versions[block, version] == version
            assert np.linalg.norm(blocks[block] - theirs) <= tolerance * np.linalg.norm(theirs) * (1 + 1e-5)


@pytest.mark.slow
def test_the_engine_computes_what_the_masked_checkpoints_do(tmp_path: Path) -> None:
    moves = {MOVED: 0.5, "encoder.layer.0.attention.self.query.weight": 0.3, "encoder.layer.0.output.dense.bias": 0.1}
    entries = content(tmp_path, animal={}, weather=moves, number={MOVED: 0.5}, sky={})
    prepared = prepare(task_file.from_dict(entries | {"alignment": 0.5, "dtype": "float32"}))
    chosen = choose_blocks(prepared)
    assert 0 <= chosen.gap < 0.01
    bundle = wp.compile(entries | {"dtype": "float32"}, tmp_path / "a.bundle")
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 7, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    with wp.Engine.from_pretrained(tmp_path / "a.bundle") as engine:
        for task in (*bundle.tasks, *reversed(bundle.tasks)):
            wanted = masked_logits(prepared.source, chosen.masks, task, inputs)
            with engine.task(task) as module, torch.inference_mode():
                torch.testing.assert_close(module(**inputs).logits, wanted, rtol=1e-4, atol=1e-4)
    # Embeddings and other matrices are in memory once.
    assert footprint(bundle).private < footprint(bundle).resident / 2


def masked_logits(source: DenseModel, masks: Masks, task: str, inputs: dict[str, Tensor]) -> Tensor:
    weights = {
        module_name(info.name, "bert"): masks.masked(task, info, TaskWeights(source).weight(task, info))
        for info in source.paged
    }
    with torch.inference_mode():
        found: Tensor = functional_call(source.models[task], weights, kwargs=inputs).logits
    return found


def test_different_embeddings_cost_memory_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "embeddings.word_embeddings.weight"
    source = load(content(tmp_path, animal={}, weather={name: 0.5}))
    # An embedding is written in bfloat16.
    assert f"'{BASE}{name}' differs from the model's: {16 * 64 * 2} bytes" in caplog.text
    assert source.parameters("weather")[BASE + name] is not source.parameters("animal")[BASE + name]


def test_embeddings_that_hardly_moved_are_shared(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "embeddings.word_embeddings.weight"
    source = load(content(tmp_path, animal={}, weather={name: 0.005}))
    assert source.parameters("weather")[BASE + name] is source.parameters("animal")[BASE + name]
    assert not caplog.text


def test_language_models_bring_checkpoints_too(tmp_path: Path) -> None:
    entries = tiny.writer(tmp_path)
    tiny.llama(tmp_path / "own", seed=5)
    entries["tasks"]["numbers"]["checkpoint"] = str(tmp_path / "own")
    source = load(entries)
    assert all((versions == [SHARED, 1]).all() for versions in source.versions.values())
    assert len(source.versions) == len(source.paged)
    numbers = source.models["numbers"]
    assert numbers.lm_head.weight is numbers.get_input_embeddings().weight
    assert numbers.lm_head.weight is not source.models["animals"].lm_head.weight


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: tiny.llama(path), "weather.checkpoint .*: expected a checkpoint of bert, found one of llama"),
        (
            lambda path: tiny_models.bert(path, BertForSequenceClassification),
            r"expected intermediate_size 100 as in the model, found 96",
        ),
        (lambda path: tiny.bert(path), r"expected the weight 'classifier\.bias', the checkpoint has none"),
    ],
)
def test_refuses_checkpoints_of_something_else(tmp_path: Path, make: Any, expected: str) -> None:
    entries = content(tmp_path, animal={}, weather={})
    make(tmp_path / "other")
    entries["tasks"]["weather"]["checkpoint"] = str(tmp_path / "other")
    with pytest.raises(CompileError, match=expected):
        load(entries)


def test_refuses_a_checkpoint_that_numbers_words_otherwise(tmp_path: Path) -> None:
    entries = content(tmp_path, animal={})
    tiny_models.tokenizer().save_pretrained(tmp_path / "animal")
    with pytest.raises(CompileError, match="expected the model's tokenizer, found one with another vocabulary"):
        load(entries)


def test_refuses_a_checkpoint_that_reads_pictures_otherwise(tmp_path: Path) -> None:
    entries = tiny_llava.watcher(tmp_path, pictures=False, recover="none")
    folder = tiny_llava.llava(tmp_path / "animal")
    entries["tasks"] = {"animal": entries["tasks"]["animal"] | {"checkpoint": str(folder)}}
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"processor_class": "LlavaProcessor"}))
    assert load(entries).pictures is not None
    file.write_text(json.dumps(settings | {"image_mean": [0.5, 0.5, 0.5]}))
    expected = r"animal.checkpoint .*: expected the model's image processor with image_mean .*0\.48.*, found .*0\.5"
    with pytest.raises(CompileError, match=expected):
        load(entries)
    file.unlink()
    assert load(entries).pictures is not None


@pytest.mark.parametrize("key", ["head", "checkpoint"])
def test_refuses_checkpoints_that_are_not_finite(tmp_path: Path, key: str) -> None:
    entries = content(tmp_path, animal={})
    entries["tasks"]["animal"][key] = entries["tasks"]["animal"].pop("checkpoint")
    file = tmp_path / "animal" / "model.safetensors"
    tensors = load_file(file)
    tensors["classifier.weight"][0, 0] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CompileError, match=r"animal: expected finite weights, found NaN .* 'classifier\.weight'"):
        load(entries)


def test_refuses_another_size_of_one_weight(tmp_path: Path) -> None:
    entries = content(tmp_path, animal={})
    file = tmp_path / "animal" / "model.safetensors"
    tensors = load_file(file)
    tensors["bert." + MOVED] = torch.zeros(64, 32)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CompileError, match=r"expected the weight 'base_model\..*', the checkpoint has none of that sh"):
        load(entries)


def test_the_task_file_says_what_cannot_be_combined(tmp_path: Path) -> None:
    entries = content(tmp_path, animal={}, weather={})
    with pytest.raises(ConfigError, match="recover: expected none, found finetune: .* animal has a checkpoint"):
        task_file.from_dict(entries | {"recover": "finetune"})
    both = json.loads(json.dumps(entries))
    both["tasks"]["animal"]["head"] = both["tasks"]["animal"]["checkpoint"]
    with pytest.raises(ConfigError, match=r"tasks\.animal: head and checkpoint can't both be given"):
        task_file.from_dict(both)
    del entries["tasks"]["weather"]["checkpoint"]
    with pytest.raises(ConfigError, match=r"tasks\.weather: expected a head or a checkpoint"):
        task_file.from_dict(entries)


def test_other_settings_words_or_switches_are_another_compile(tmp_path: Path) -> None:
    entries = content(tmp_path, animal={}, weather={}) | {"transitions": str(tmp_path / "day.jsonl")}
    (tmp_path / "day.jsonl").write_text("")
    file = task_file.from_dict(entries)
    found = [compile_identity(file)]
    for path in ("bert/config.json", "bert/tokenizer.json", "animal/config.json", "day.jsonl"):
        (tmp_path / path).write_text((tmp_path / path).read_text() + " ")
        found.append(compile_identity(file))
    assert len(set(found)) == 5


def test_another_checkpoint_is_another_compile(tmp_path: Path) -> None:
    file = task_file.from_dict(content(tmp_path, animal={}))
    before = compile_identity(file)
    checkpoint(tmp_path / "animal", tmp_path / "bert", CLASSES["animal"], {MOVED: 0.1})
    assert compile_identity(file) != before


def test_settings_that_older_versions_wrote_are_no_difference(tmp_path: Path) -> None:
    entries = content(tmp_path, animal={})
    file = tmp_path / "animal" / "config.json"
    older = {"position_embedding_type": "absolute", "pruned_heads": {}, "torchscript": False, "unsloth_version": "1"}
    file.write_text(json.dumps(json.loads(file.read_text()) | older))
    load(entries)


def test_refuses_a_checkpoint_whose_words_are_a_list(tmp_path: Path) -> None:
    entries = content(tmp_path, animal={})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *reversed(tiny.WORDS)]
    for file in (tmp_path / "animal").glob("*token*"):
        file.unlink()
    (tmp_path / "animal" / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(CompileError, match="expected the model's tokenizer, found one with another vocabulary"):
        load(entries)


@pytest.mark.slow
def test_a_wished_switch_counts_what_tasks_have_in_other_versions(tmp_path: Path) -> None:
    bundle = wp.compile(content(tmp_path, animal={}, weather={MOVED: 0.5}) | {"max_switch": "1MiB"}, tmp_path / "a")
    report = read_report(bundle)
    (used,) = [point for point in report.frontier if point.alignment == report.alignment]
    kept = {task: set(np.asarray(bundle.kept_locations(task)).tolist()) for task in bundle.tasks}
    lacking = [len(kept[b] - kept[a]) for a in kept for b in kept if a != b]
    assert used.switch_bytes == pytest.approx(np.mean(lacking) * bundle.block_bytes)
    assert used.switch_bytes > 0

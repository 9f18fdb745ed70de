"""Joint training of the dense model."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification

import tiny_models as tiny
from weightpager.answers.score import Score
from weightpager.compiler import data, task_file
from weightpager.compiler.data import TaskData
from weightpager.compiler.model import dense_model
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.recovery import finetune
from weightpager.compiler.training import loss
from weightpager.compiler.training.evaluate import evaluate
from weightpager.errors import CompileError


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "autocast", nullcontext)


def load(content: dict[str, Any], folder: Path) -> tuple[DenseModel, dict[str, TaskData]]:
    found = dense_model.load(task_file.from_dict(content, folder))
    parsed = found.task_file
    return found, {
        name: data.load(name, task, found.tokenizer, found.classes(name), parsed.max_length_of(name))
        for name, task in parsed.tasks.items()
    }


def content(folder: Path, *kinds: str, **training: Any) -> dict[str, Any]:
    settings = {"steps": 40, "learning_rate": 1e-3, "head_learning_rate": 1e-2, "batch": 8} | training
    tasks = tiny.tasks(folder, *kinds)
    return {"model": "model", "calibration": {"max_length": 32}, "training": settings, "tasks": tasks}


def weights(found: DenseModel, task: str) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in found.parameters(task).items()}


def score(found: DenseModel, task: str, held: TaskData) -> Score:
    return evaluate(found.models[task], held.batches(held.eval, 8), held.kind)


@pytest.mark.slow
def test_learns_two_tasks_over_one_base(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    found, held = load(content(tmp_path, "text", "tokens", learning_rate=3e-3, steps=100), tmp_path)
    steps: list[tuple[int, int]] = []
    assert finetune.train(found, held, lambda done, total: steps.append((done, total))) == ("text", "tokens")
    assert steps == [(step, 100) for step in range(1, 101)]
    assert score(found, "text", held["text"]).value > 0.9
    assert score(found, "tokens", held["tokens"]).value > 0.9
    name = found.paged[0].name
    assert found.linear("text", name).weight is found.linear("tokens", name).weight
    for task in held:
        assert not any(module.training for module in found.models[task].modules())
        assert all(parameter.grad is None for parameter in found.models[task].parameters())


def test_follows_the_seed_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    results = []
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        found, held = load(content(tmp_path, "text", "tokens", steps=4, seed=seed), tmp_path)
        finetune.train(found, held)
        results.append(weights(found, "text"))
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = results
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_language_models_train_nothing(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "model")
    found, held = load(content(tmp_path, "lm"), tmp_path)
    before = weights(found, "lm")
    assert finetune.train(found, held) == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.parameters("lm").items())


def test_a_head_that_is_given_stays(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    tiny.bert(tmp_path / "head", BertForSequenceClassification, id2label={0: "bad", 1: "good"})
    made = content(tmp_path, "text", "tokens", steps=3)
    made["tasks"]["text"]["head"] = "head"
    found, held = load(made, tmp_path)
    before = weights(found, "text")
    assert finetune.train(found, held) == ("tokens",)
    after = weights(found, "text")
    name = found.paged[0].name + ".weight"
    assert torch.equal(after["classifier.weight"], before["classifier.weight"])
    assert not torch.equal(after[name], before[name])


def test_a_head_beside_tasks_that_are_trained_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.bert(tmp_path / "model", BertForSequenceClassification, id2label={0: "bad", 1: "good"})
    entries = content(tmp_path, "text", "tokens", steps=1)
    entries["tasks"]["text"]["head"] = "model"
    finetune.train(*load(entries, tmp_path))
    assert "tasks.text stays as it is while training for tokens moves the weights under it" in caplog.text
    assert "brings a head" not in caplog.text


def test_training_on_the_models_own_head_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny.bert(tmp_path / "model", BertForSequenceClassification, id2label={0: "good", 1: "bad"})
    finetune.train(*load(content(tmp_path, "text", steps=1), tmp_path))
    assert f"both are trained on; 'head: {folder}' keeps them" in caplog.text


def test_a_decoder_with_tied_embeddings_stays_tied(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "model")
    found, held = load(content(tmp_path, "text", "lm", steps=2), tmp_path)
    finetune.train(found, held)
    assert found.models["lm"].lm_head.weight is found.models["text"].model.embed_tokens.weight
    assert score(found, "lm", held["lm"]).value > 1


def test_one_step_is_enough(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    found, held = load(content(tmp_path, "text", steps=1), tmp_path)
    assert finetune.train(found, held) == ("text",)


def test_says_when_training_diverges(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    found, held = load(content(tmp_path, "text"), tmp_path)
    with torch.no_grad():
        found.models["text"].classifier.weight.fill_(3e38)
    with pytest.raises(CompileError, match=r"tasks\.text, step 1: training diverged"):
        finetune.train(found, held)

"""Tasks of a task file that are LoRA adapters beside other tasks' blocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import weightpager as wp
from lora import lora
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.addition import Addition, add_task
from weightpager.compiler import task_file
from weightpager.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT, of transformers

IDS = np.array([[2, 4, 9, 12, 7, 3, 5, 5, 11]])
INPUTS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    """A task file with two tasks that keep all blocks, and an adapter that nothing names yet."""
    model = tiny.llama(tmp_path / "model")
    lora(model, tmp_path / "lora")
    return tiny.writer(tmp_path, model=model, sparsity=0, compare="none")


def logits(bundle: Path, task: str) -> Any:
    with wp.load(bundle) as engine, engine.task(task):
        return engine.model(task).logits(INPUTS)


def kind(content: dict[str, Any]) -> str:
    return str(next(iter(content["tasks"].values()))["kind"])


def test_an_adapter_of_the_file_is_as_one_that_is_added_later(tmp_path: Path, content: dict[str, Any]) -> None:
    plain = wp.compile(content, tmp_path / "plain.bundle")
    add_task(plain.path, Addition("german", tmp_path / "lora", like="numbers"))
    german = {"kind": kind(content), "adapter": str(tmp_path / "lora"), "like": "numbers"}
    content["tasks"] = {"german": german, **content["tasks"]}
    bundle = wp.compile(content, tmp_path / "a.bundle")
    assert list(bundle.tasks) == ["animals", "numbers", "german"]
    assert not verify(bundle.path).problems
    assert bundle.task("german").dense is None
    for task in bundle.tasks:
        assert np.array_equal(logits(bundle.path, task), logits(plain.path, task))
    assert np.array_equal(bundle.pages.ids, Bundle.open(plain.path).pages.ids)


def test_an_adapter_comes_with_tasks_that_are_added(tmp_path: Path, content: dict[str, Any]) -> None:
    both = content["tasks"]
    first, second = both
    base = wp.compile(content | {"tasks": {first: both[first]}}, tmp_path / "base.bundle")
    more = {second: both[second], "german": {"kind": kind(content), "adapter": str(tmp_path / "lora"), "like": second}}
    grown = wp.compile(content | {"tasks": more}, tmp_path / "grown.bundle", base=base.path)
    assert list(grown.tasks) == [first, second, "german"]
    assert not verify(grown.path).problems
    assert np.array_equal(logits(grown.path, first), logits(base.path, first))
    assert not np.array_equal(logits(grown.path, "german"), logits(grown.path, second))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda german: german.update(adapter="nowhere"), r"adapter: expected a directory of PEFT's, found"),
        (lambda german: german.update(like="nobody"), r"tasks\.german\.like: expected a task with blocks of .*nobody"),
        (lambda german: german.update(kind="text-classification"), r"tasks\.german\.kind: expected that of a task"),
        (lambda german: german.update(train="rows.jsonl"), r"tasks\.german\.train: unknown key"),
        (lambda german: german.pop("kind"), r"tasks\.german\.kind: expected a value"),
    ],
)  # fmt: skip
def test_what_an_adapter_cannot_be_is_refused_at_once(
    tmp_path: Path, content: dict[str, Any], change: Callable[[dict[str, Any]], object], says: str
) -> None:
    german = {"kind": kind(content), "adapter": str(tmp_path / "lora")}
    change(german)
    content["tasks"]["german"] = german
    with pytest.raises(ConfigError, match=says):
        task_file.from_dict(content)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sparsity": 0.5}, r"tasks\.german\.like: expected the task whose blocks it takes \(animals, numbers\)"),
        ({"units": "half-layer"}, "units: expected block beside adapters"),
        ({"recover": {"method": "finetune", "low_rank": 2}}, "recover.low_rank: expected 0 beside tasks that take"),
    ],
)
def test_what_adapters_cannot_stand_beside_is_refused_at_once(
    tmp_path: Path, content: dict[str, Any], settings: dict[str, Any], says: str
) -> None:
    content["tasks"]["german"] = {"kind": kind(content), "adapter": str(tmp_path / "lora")}
    with pytest.raises(ConfigError, match=says):
        task_file.from_dict(content | settings)


def test_an_adapter_of_another_model_is_refused_before_anything_is_trained(
    tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.opt(tmp_path / "other")
    content["tasks"]["german"] = {"kind": kind(content), "adapter": str(lora(other, tmp_path / "other-lora"))}
    monkeypatch.setattr("weightpager.compiler.prepare._train", None)
    with pytest.raises(ConfigError, match=r"tasks\.german\.adapter: .*expected a module whose weight the bundle has"):
        wp.compile(content, tmp_path / "a.bundle")
    assert not (tmp_path / "a.bundle").exists()

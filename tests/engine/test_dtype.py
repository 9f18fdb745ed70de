"""Tasks that compute in bfloat16, whatever their bundle's parameters are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
import weightpager as wp
from command import Command
from encoder_tasks import INPUTS, logits
from weightpager.backends.torch.export import export_task
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.errors import BudgetError, ConfigError


def held_bytes(engine: wp.Engine) -> int:
    """Of all modules' parameters and buffers, each counted once."""
    modules = [engine.module(task) for task in engine.bundle.tasks]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@pytest.mark.parametrize("task", ["animal", "weather", "number"])
def test_a_task_equals_its_exported_model_in_bfloat16(assistant_bundle: Path, task: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    exported = AutoModelForSequenceClassification.from_pretrained(
        export_task(Bundle.open(assistant_bundle), task, tmp_path / "out"), dtype=torch.bfloat16
    ).eval()
    with wp.Engine.from_pretrained(assistant_bundle, dtype="bfloat16") as engine, engine.task(task) as module:
        found = logits(module)
        assert {tensor.dtype for tensor in module.parameters()} == {torch.bfloat16}
    assert found.dtype == torch.bfloat16
    expected = logits(exported)
    assert float((found - expected).norm()) <= 0.03 * float(expected.norm())


def test_its_answers_are_near_those_in_float32(assistant_bundle: Path) -> None:
    def answer(dtype: str) -> Tensor:
        with wp.Engine.from_pretrained(assistant_bundle, dtype=dtype) as engine, engine.task("animal") as module:
            return logits(module).float()

    wide, narrow = answer("auto"), answer("bfloat16")
    assert not torch.equal(wide, narrow)
    torch.testing.assert_close(narrow, wide, rtol=0, atol=0.05)


def test_it_takes_less_memory_and_says_how_much(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    wide, narrow = footprint(bundle), footprint(bundle, "bfloat16")
    assert narrow.tables == wide.tables
    with (
        wp.Engine.from_pretrained(assistant_bundle) as ordinary,
        wp.Engine.from_pretrained(assistant_bundle, dtype="bfloat16") as engine,
    ):
        use = engine.report().memory
        saved = held_bytes(ordinary) - held_bytes(engine)
    assert (use.resident, use.private) == (narrow.resident, narrow.private)
    assert 0 < saved == wide.total - narrow.total


def test_a_budget_that_is_too_small_in_float32_may_do(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    least = footprint(bundle, "bfloat16").total + min(len(bundle.pages_of(t)) for t in bundle.tasks) * bundle.page_bytes
    with wp.Engine.from_pretrained(assistant_bundle, budget=least, dtype="bfloat16"):
        pass
    with pytest.raises(BudgetError):
        wp.Engine.from_pretrained(assistant_bundle, budget=least)


def test_a_decoder_generates(writer_bundle: Path) -> None:
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with wp.Engine.from_pretrained(writer_bundle, dtype="bfloat16") as engine, engine.task("animals") as module:
        assert logits(module).dtype == torch.bfloat16
        assert module.generate(**INPUTS, **options).shape == (1, 14)


def test_images_are_read_in_float32_all_the_same(weightpager: Command, camera_bundle: Path, tmp_path: Path) -> None:
    frame = tiny.picture(tmp_path / "frame.png", "red", "unseen")
    done = weightpager("run", camera_bundle, "--task", "bright", "--image", frame, "--dtype", "bfloat16", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["predictions"][0]["label"] in ("white", "black")
    done = weightpager("eval", camera_bundle, "--dtype", "bfloat16", "--json")
    assert done.code == 0, done.err
    assert {row["name"]: row["sparse"] for row in json.loads(done.out)["tasks"]}["bright"] == 1.0


def test_another_dtype_is_refused(assistant_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="dtype: expected 'auto' or 'bfloat16', got 'float16'"):
        wp.Engine.from_pretrained(assistant_bundle, dtype="float16")

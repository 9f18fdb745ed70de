"""Decoders with linear layers of their own kinds: GPT-2's hold their weights as [in, out], Falcon's have a class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, FalconForCausalLM, GPT2Config, GPT2LMHeadModel

import tiny
import weightpager as wp
from weightpager.backends.torch.export import export_task
from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager.store.block_reader import read_low_rank

pytestmark = pytest.mark.usefixtures("no_network")

IDS = torch.tensor([[2, 4, 9, 12, 7, 3]])
WORDS = {"vocab_size": 16, "bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.2}


def gpt2(folder: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=64, **WORDS)).save_pretrained(folder)


def falcon(folder: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    config = FalconConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, **WORDS)
    FalconForCausalLM(config).save_pretrained(folder)


FAMILIES = {"gpt2": gpt2, "falcon": falcon}


def content(family: str, folder: Path, **changes: Any) -> dict[str, Any]:
    found = tiny.writer(folder, **changes)
    FAMILIES[family](Path(found["model"]))
    return found


def answers(module: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = module(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


def engine_answers(bundle: Bundle, task: str) -> torch.Tensor:
    with wp.Engine.from_pretrained(bundle.path) as engine, engine.task(task) as module:
        return answers(module)


def exported(bundle: Bundle, task: str, out: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(export_task(Bundle.open(bundle.path), task, out)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reorder", [False, True])
def test_without_sparsity_it_is_the_dense_model(family: str, reorder: bool, tmp_path: Path) -> None:
    found = content(family, tmp_path, sparsity=0.0, dtype="float32", reorder=reorder)
    bundle = wp.compile(found, out=tmp_path / "a.bundle")
    assert len(bundle.manifest.weights) == 2 * 4
    assert bool(bundle.permutations().orders) == reorder
    dense = AutoModelForCausalLM.from_pretrained(found["model"]).eval()
    torch.testing.assert_close(engine_answers(bundle, "animals"), answers(dense), rtol=1e-4, atol=1e-4)
    saved = exported(bundle, "animals", tmp_path / "out").state_dict()
    assert saved.keys() == dense.state_dict().keys()
    for name, tensor in dense.state_dict().items():
        assert torch.equal(saved[name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "recover"),
    [
        ("gpt2", "none"),
        ("gpt2", "closed-form"),
        ("gpt2", {"method": "finetune", "steps": 2, "low_rank": 2}),
        ("falcon", "closed-form"),
    ],
)
def test_it_is_recovered_and_exported(family: str, recover: Any, tmp_path: Path) -> None:
    asked = content(family, tmp_path, recover=recover, compare="dense", dtype="float32")
    del asked["tasks"]["numbers"]
    bundle = wp.compile(asked, out=tmp_path / "a.bundle")
    assert bool(read_low_rank(bundle, "animals")) == isinstance(recover, dict)
    assert {control.name for control in read_report(bundle).controls} >= {"int8", "int4"}
    dense = exported(bundle, "animals", tmp_path / "out")
    torch.testing.assert_close(engine_answers(bundle, "animals"), answers(dense), rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with wp.Engine.from_pretrained(bundle.path) as engine, engine.task("animals") as module:
        assert module.generate(IDS, **options).tolist() == dense.generate(IDS, **options).tolist()


@pytest.mark.slow
def test_a_task_is_added_to_a_bundle_of_such_a_model(tmp_path: Path) -> None:
    found = content("gpt2", tmp_path)
    tasks = found.pop("tasks")
    base = wp.compile(found | {"tasks": {"animals": tasks["animals"]}}, out=tmp_path / "a.bundle")
    before = engine_answers(base, "animals")
    grown = wp.compile(found | {"tasks": {"numbers": tasks["numbers"]}}, out=tmp_path / "b.bundle", base=base.path)
    assert torch.equal(engine_answers(grown, "animals"), before)
    dense = answers(exported(grown, "numbers", tmp_path / "out"))
    torch.testing.assert_close(engine_answers(grown, "numbers"), dense, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_checkpoint_of_a_tasks_own_has_its_weights_turned_too(tmp_path: Path) -> None:
    found = content("gpt2", tmp_path, sparsity=0.0, dtype="float32")
    gpt2(tmp_path / "own", seed=1)
    tiny.tokenizer().save_pretrained(tmp_path / "own")
    found["tasks"]["numbers"]["checkpoint"] = str(tmp_path / "own")
    bundle = wp.compile(found, out=tmp_path / "a.bundle")
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "own").eval()
    torch.testing.assert_close(engine_answers(bundle, "numbers"), answers(own), rtol=1e-4, atol=1e-4)
    saved = exported(bundle, "numbers", tmp_path / "out").state_dict()
    for name, tensor in own.state_dict().items():
        assert torch.equal(saved[name], tensor), name

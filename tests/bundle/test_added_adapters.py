"""LoRA adapters as PEFT saves them become tasks of a bundle: as PEFT computes them, and hostile ones."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load, save, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import tiny
import weightpager as wp
from command import run
from lora import lora
from weightpager.backends.torch.export import export_task
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.addition import Addition, add_task
from weightpager.bundle.garbage import collect
from weightpager.errors import ConfigError, UnknownTaskError
from weightpager.kernels.choice import NATIVE
from weightpager.store.block_reader import read_low_rank

pytestmark = [  # what PEFT says of transformers, and of layers that lie the other way round
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]

BACKENDS = ["torch", *(["native"] if NATIVE else [])]
IDS = np.array([[2, 4, 9, 12, 7, 3, 5, 5, 11]])
INPUTS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


def gpt2(folder: Path) -> Path:
    """A decoder whose linear layers lie the other way round."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=2, eos_token_id=3, initializer_range=0.2)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


MODELS = {"llama": tiny.llama, "opt": tiny.opt, "gpt2": gpt2}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle of two tasks that keep all blocks, of each model: its folder, with the model beside."""
    made: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name not in made:
            folder = made[name] = tmp_path_factory.mktemp(name)
            model = MODELS[name](folder / "model")
            wp.compile(tiny.writer(folder, model=model, sparsity=0, compare="none"), folder / "a.bundle")
        return made[name]

    return base


@pytest.fixture
def folder(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the llama's folder, with an adapter of rank 3."""
    copied = Path(shutil.copytree(bases("llama"), tmp_path / "llama"))
    lora(copied / "model", copied / "lora")
    return copied


def logits(bundle: Path, task: str, backend: str) -> Any:
    with wp.load(bundle, backend=backend) as engine, engine.task(task):
        return engine.model(task).logits(INPUTS)


def rounded(bundle: Bundle, task: str, prefix: str, adapter: Path, out: Path) -> Path:
    """An adapter as PEFT reads it, with the values that a task's pages hold."""
    config = json.loads((adapter / "adapter_config.json").read_bytes())
    arrays = {}
    orders, parts = bundle.permutations().inverse(), read_low_rank(bundle, task)
    for name, part in parts.items():
        moved = orders.of(task, f"{name}.weight")
        module = f"base_model.model.{prefix}.{name.removeprefix('base_model.')}"
        arrays[f"{module}.lora_A.weight"] = np.ascontiguousarray(part.down[:, moved.get(1, slice(None))])
        arrays[f"{module}.lora_B.weight"] = np.ascontiguousarray(part.up[moved.get(0, slice(None))])
    rank = len(next(iter(parts.values())).down)
    plain = {"r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    out.mkdir()
    (out / "adapter_config.json").write_text(json.dumps(config | plain))
    save_file(arrays, out / "adapter_model.safetensors", {"format": "pt"})
    return out


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "few": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 5, "layers.1.mlp.up_proj": 1},
        "alpha_pattern": {"layers.0.self_attn.k_proj": 9},
    },
    "one-layer": {"layers_to_transform": [1], "target_modules": ["o_proj"]},
    "gaussian": {"init_lora_weights": "gaussian", "lora_dropout": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "settings"), [*(("llama", each) for each in SETTINGS), ("opt", "plain"), ("gpt2", "plain")]
)
def test_a_task_computes_what_peft_computes(
    bases: Callable[[str], Path], tmp_path: Path, name: str, settings: str, backend: str
) -> None:
    base = bases(name)
    dtype = {"rslora": torch.bfloat16, "few": torch.float16}.get(settings, torch.float32)
    adapter = lora(base / "model", tmp_path / "lora", dtype, **SETTINGS[settings])
    bundle = Path(shutil.copytree(base / "a.bundle", tmp_path / "a.bundle"))
    before = logits(bundle, "animals", backend)
    assert add_task(bundle, Addition("new", adapter)).task("new").dense is None
    export_task(Bundle.open(bundle), "animals", tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    with torch.inference_mode():
        given = {key: torch.from_numpy(value) for key, value in INPUTS.items()}
        plain = dense(**given).logits.numpy()
        paged = rounded(Bundle.open(bundle), "new", dense.base_model_prefix, adapter, tmp_path / "rounded")
        wanted = PeftModel.from_pretrained(copy.deepcopy(dense), paged)(**given).logits.numpy()
        unrounded = PeftModel.from_pretrained(dense, adapter).float()(**given).logits.numpy()
    found = logits(bundle, "new", backend)
    assert np.abs(wanted - unrounded).max() < 0.05 * np.abs(wanted - plain).max()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    assert np.abs(found - plain).max() > 0.02
    assert np.array_equal(logits(bundle, "animals", backend), before)


def test_a_bundle_with_an_adapter_is_whole_and_goes_back(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = folder / "a.bundle"
    old = Bundle.open(bundle).manifest
    for number in range(3):
        add_task(bundle, Addition(f"new-{number}", folder / "lora", like="numbers"))
    opened = Bundle.open(bundle)
    assert list(opened.tasks) == ["animals", "numbers", "new-0", "new-1", "new-2"]
    assert not verify(bundle).problems
    own = opened.low_rank_pages("new-1")
    assert np.array_equal(np.setdiff1d(opened.pages_of("new-1"), own), opened.pages_of("numbers"))
    assert len(own)
    assert np.allclose(np.array(opened.manifest.transitions).sum(1), 1)
    assert run(capsys, monkeypatch, "inspect", bundle).code == 0
    collect(bundle, ["new-0", "new-1", "new-2"])
    left = Bundle.open(bundle).manifest
    assert (left.tasks, left.page_files, left.row_tables) == (old.tasks, old.page_files, old.row_tables)


def test_an_engine_takes_a_new_adapter_by_its_reload(folder: Path) -> None:
    with wp.load(folder / "a.bundle") as engine:
        engine.generate("animals", "red", max_new_tokens=2)
        add_task(folder / "a.bundle", Addition("new", folder / "lora"))
        assert engine.reload().added == ("new",)
        assert engine.generate("new", "red", max_new_tokens=2).tokens


def test_the_command_adds_by_the_directorys_name(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, adapter = folder / "a.bundle", folder / "lora"
    done = run(capsys, monkeypatch, "add", bundle, adapter)
    assert done.code == 0, done.err
    assert "lora added; its low-rank parts take" in done.out
    told = run(capsys, monkeypatch, "add", bundle, adapter, "--name", "b", "--like", "numbers", "--json")
    assert json.loads(told.out) == {"task": "b", "adapter_bytes": Bundle.open(bundle).low_rank_bytes("b")}
    assert list(Bundle.open(bundle).tasks) == ["animals", "numbers", "lora", "b"]
    again = run(capsys, monkeypatch, "add", bundle, adapter)
    assert again.code == 2
    assert "name: expected a new one, found 'lora'" in again.err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"peft_type": "IA3"}, "peft_type: expected LORA"),
        ({"bias": "all"}, "bias: expected none"),
        ({"use_dora": True}, "use_dora: expected no such setting"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: expected no such setting"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: expected True or False or gaussian"),
        ({"init_lora_weights": 1}, "init_lora_weights: expected"),
        ({"alpha_pattern": {"(a+)+$": 4}}, "alpha_pattern: expected modules' names"),
        ({"alpha_pattern": [1]}, "alpha_pattern: expected modules and numbers"),
        ({"lora_alpha": "8"}, "lora_alpha: expected a number"),
        ({"lora_alpha": 1e300}, "lora_alpha: expected a number"),
        ({"use_rslora": "yes"}, "use_rslora: expected true or false"),
        ({"what_comes_next_year": {"a": 1}}, "what_comes_next_year: expected no such setting"),
    ],
)
def test_settings_that_would_compute_something_else_are_refused(
    folder: Path, changes: dict[str, Any], expected: str
) -> None:
    file = folder / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")
    unchanged(folder, expected)


def unchanged(folder: Path, expected: str, **more: Any) -> None:
    before = {path: path.read_bytes() for path in (folder / "a.bundle").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=expected):
        add_task(folder / "a.bundle", Addition(**({"name": "new", "adapter": folder / "lora"} | more)))
    assert {path: path.read_bytes() for path in (folder / "a.bundle").rglob("*") if path.is_file()} == before


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def _wide(arrays: dict[str, Any]) -> None:
    arrays[FIRST] = np.zeros((70, 64), np.float32)
    arrays[FIRST.replace("_A", "_B")] = np.zeros((64, 70), np.float32)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda arrays: arrays[FIRST].fill(np.nan), "expected finite values"),
        (lambda arrays: arrays.pop(FIRST), "expected lora_A beside it"),
        (lambda arrays: arrays.update({FIRST: arrays[FIRST][:, :-1].copy()}), r"expected float32 or .*\[3, 64\]"),
        (lambda arrays: arrays.update({FIRST: arrays[FIRST].astype(np.int8)}), "expected float32 or"),
        (lambda arrays: arrays.update({FIRST: np.zeros((0, 64), np.float32)}), "expected a rank from 1 to 64"),
        (_wide, "expected a rank from 1 to 64"),
        (lambda arrays: arrays.update({"base_model.model.lm_head.lora_A.weight": arrays[FIRST]}), "lora_B beside it"),
        (lambda arrays: arrays.update({"../../etc": arrays[FIRST]}), "expected LoRA's A and B of linear layers"),
        (lambda arrays: arrays.update({f"{FIRST[:-7]}.default.weight": arrays[FIRST]}), "LoRA's A and B"),
        (lambda arrays: arrays.clear(), "expected parts of one model's weights"),
    ],
)
def test_tensors_that_fit_no_weight_are_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    file = folder / "lora" / "adapter_model.safetensors"
    arrays = {name: array.copy() for name, array in load(file.read_bytes()).items()}
    change(arrays)
    file.write_bytes(save(arrays))
    unchanged(folder, expected)


def test_directories_without_an_adapter_and_pickles_are_refused(folder: Path) -> None:
    file = folder / "lora" / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-5])
    unchanged(folder, "expected a safetensors file")
    file.unlink()
    (folder / "lora" / "adapter_model.bin").write_bytes(content)
    unchanged(folder, r"expected adapter_model.safetensors, found none, and a .bin isn't read")
    config = folder / "lora" / "adapter_config.json"
    file.write_bytes(content)
    config.write_bytes(b"[" * 10_000)
    unchanged(folder, "adapter_config.json")
    config.write_bytes(b" " * (2**20 + 1))
    unchanged(folder, "expected at most 1048576 bytes")
    config.unlink()
    unchanged(folder, "expected a directory of PEFT's")


def test_names_and_tasks_that_do_not_go_are_refused(folder: Path) -> None:
    unchanged(folder, "name: expected a new one, found 'animals'", name="animals")
    unchanged(folder, "name: expected lower-case letters", name="../x")
    with pytest.raises(UnknownTaskError):
        add_task(folder / "a.bundle", Addition("new", folder / "lora", like="nobody"))
    add_task(folder / "a.bundle", Addition("first", folder / "lora"))
    unchanged(folder, "like: expected a task without low-rank parts, found first", like="first")


def test_where_no_task_keeps_all_blocks_one_must_be_named(folder: Path, writer_bundle: Path) -> None:
    shutil.rmtree(folder / "a.bundle")
    shutil.copytree(writer_bundle, folder / "a.bundle")
    unchanged(folder, "like: expected the name of the task whose blocks the new one takes")
    add_task(folder / "a.bundle", Addition("new", folder / "lora", like="numbers"))
    with wp.load(folder / "a.bundle") as engine:
        assert engine.generate("new", "red", max_new_tokens=2).tokens

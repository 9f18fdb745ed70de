"""A task's low-rank parts as llama.cpp's file: bit by bit the adapter's, and only where they are the whole task."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

import tiny
import tiny_gguf
import tiny_pairs
import weightpager as wp
from command import Command
from lora import lora
from weightpager.backends.torch.gguf_lora import export_lora
from weightpager.bundle import Bundle
from weightpager.bundle.addition import Addition, add_task
from weightpager.compiler.model.gguf_model import directory_of
from weightpager.errors import ConfigError, UnknownTaskError
from weightpager.machine import packages

pytestmark = [  # what PEFT says of transformers
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
]

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}
RECOVER = {"method": "finetune", "steps": 2, "batch": 8, "private_steps": 2, "low_rank": 2}


def qwen2(folder: Path) -> Path:
    """A decoder whose rows llama.cpp leaves where they are."""
    torch.manual_seed(0)
    reads = tiny_pairs.tokenizer(tiny_pairs.by_level())
    sizes = {"vocab_size": len(reads), "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, bos_token_id=0, eos_token_id=1)).save_pretrained(folder)
    reads.save_pretrained(folder)
    return folder


def exact(model: Path, out: Path) -> Path:
    """An adapter of rank 8 and scaling 2 that int8 holds to the bit: every row has a 127 in each of its blocks."""
    lora(model, out, r=8, lora_alpha=16)
    rng, file = np.random.default_rng(0), out / "adapter_model.safetensors"
    arrays = load_file(file)
    for name, array in arrays.items():
        numbers = rng.integers(-127, 128, array.shape)
        numbers[rng.random(array.shape) < 0.7] = 127
        numbers[:, rng.integers(array.shape[1])] = -127
        arrays[name] = (numbers / 2**12).astype(np.float32)
    save_file(arrays, file, {"format": "pt"})
    return out


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A bundle whose tasks keep all blocks, in an order of its own, with an adapter's task: its folder."""
    made: dict[str, Path] = {}

    def base(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            model = {"llama": tiny.llama, "qwen2": qwen2}[name](folder / "model")
            content = tiny.writer(folder, model=model, sparsity=0, compare="none", reorder=True)
            wp.compile(content, folder / "a.bundle")
            add_task(folder / "a.bundle", Addition("new", exact(model, folder / "lora")))
            made[name] = folder
        return made[name]

    return base


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}


def with_pairs_together(rows: Any, heads: int) -> Any:
    """Each head's row i of the first half, then row i of the second one."""
    half = len(rows) // heads // 2
    return np.stack([rows[head * 2 * half + side * half + at] for head in range(heads) for at in range(half)
                     for side in (0, 1)])  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_file_has_the_adapters_bits(bases: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    folder = bases(name)
    bundle = Bundle.open(folder / "a.bundle")
    assert bundle.permutations().orders
    written = export_lora(bundle, "new", tmp_path / "new.gguf")
    assert [*tmp_path.iterdir()] == [written]
    fields = {key: field.contents() for key, field in gguf.GGUFReader(written).fields.items()}
    wanted = {
        "general.architecture": name, "general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0,
    }  # fmt: skip
    assert wanted.items() <= fields.items()
    found, adapter = tensors(written), load_file(folder / "lora" / "adapter_model.safetensors")
    assert len(found) == len(adapter) == 2 * 2 * len(NAMES)
    for layer in range(2):
        for part, called in NAMES.items():
            down, up = (adapter[f"base_model.model.model.layers.{layer}.{part}.lora_{side}.weight"] for side in "AB")
            up = 2 * (with_pairs_together(up, HEADS[part]) if name == "llama" and part in HEADS else up)
            for side, values in (("a", down), ("b", up)):
                array = found[f"blk.{layer}.{called}.weight.lora_{side}"]
                assert array.dtype == np.float32
                np.testing.assert_array_equal(array, values, f"{layer} {part} {side}")


@pytest.mark.slow
def test_laid_over_the_base_in_its_file_it_computes_what_the_task_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    base = tmp_path / "base.gguf"
    tiny_gguf.write(base, tmp_path / "model")
    content = {"model": str(base), "dtype": "float32", "tasks": {"chat": {"kind": "text-generation"}}}
    wp.compile(content, tmp_path / "a.bundle", cache=False)
    bundle = add_task(tmp_path / "a.bundle", Addition("new", lora(tmp_path / "model", tmp_path / "lora", r=4)))
    parts = tensors(export_lora(bundle, "new", tmp_path / "new.gguf"))
    ids = torch.tensor([[5, 40, 300, 17, 9, 200]])
    inputs = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, 6), int)}
    with wp.load(bundle.path) as engine:
        logits = {}
        for task in ("chat", "new"):
            with engine.task(task):
                logits[task] = engine.model(task).logits(inputs)
    for tensor in gguf.GGUFReader(base, "r+").tensors:
        if (down := parts.get(f"{tensor.name}.lora_a")) is not None:
            tensor.data[:] += parts[f"{tensor.name}.lora_b"] @ down
    merged = AutoModelForCausalLM.from_pretrained(directory_of(base, tmp_path / "merged"), dtype=torch.float32)
    with torch.inference_mode():
        np.testing.assert_allclose(logits["new"], merged(ids).logits.numpy(), rtol=1e-4, atol=1e-4)
    assert np.abs(logits["new"] - logits["chat"]).max() > 0.01


def test_the_command_takes_the_name_for_the_form(
    bases: Callable[[str], Path], tmp_path: Path, weightpager: Command
) -> None:
    bundle, out = bases("llama") / "a.bundle", tmp_path / "new.gguf"
    done = weightpager("export", bundle, "--task", "new", "--out", out)
    assert (done.code, done.out, done.err) == (0, f"{out}: new, for llama.cpp's --lora beside the dense model\n", "")
    again = weightpager("export", bundle, "--task", "new", "--out", out)
    assert again.code == 2
    assert "exists; choose another name" in again.err
    told = weightpager("export", bundle, "--task", "new", "--out", tmp_path / "b.gguf", "--json")
    assert json.loads(told.out) == {"task": "new", "out": str(tmp_path / "b.gguf")}
    assert out.read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(UnknownTaskError):
        export_lora(Bundle.open(bundle), "nobody", tmp_path / "c.gguf")


def refused(bundle: Path, task: str, says: str, out: Path) -> None:
    before = [*out.iterdir()]
    with pytest.raises(ConfigError, match=says):
        export_lora(Bundle.open(bundle), task, out / "out.gguf")
    assert [*out.iterdir()] == before


def test_what_the_file_cannot_hold_is_named(
    bases: Callable[[str], Path], tmp_path: Path, writer_bundle: Path, assistant_bundle: Path
) -> None:
    plain = bases("llama") / "a.bundle"
    refused(plain, "animals", "and animals has none; name a directory", tmp_path)
    refused(assistant_bundle, "animal", "expected a model like llama, .*, found 'bert'", tmp_path)
    pruned = Path(shutil.copytree(writer_bundle, tmp_path / "a.bundle"))
    model = tiny.llama(tmp_path / "model")
    add_task(pruned, Addition("new", lora(model, tmp_path / "lora"), like="numbers"))
    refused(pruned, "new", r"new has beside them [\d,]+ of [\d,]+ blocks dropped\. Name a directory", tmp_path)


@pytest.mark.slow
def test_values_that_are_a_tasks_own_are_named(tmp_path: Path) -> None:
    content = tiny.writer(tmp_path, sparsity=0, compare="none", recover=RECOVER | {"private_blocks": 0.2})
    own = wp.compile(content, tmp_path / "a.bundle", cache=False).path
    says = "values of its own for base_model.layers.0.input_layernorm.weight.* blocks whose values differ among tasks"
    refused(own, "animals", says, tmp_path)


def test_without_the_library_it_says_what_to_install(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert not packages.is_installed("gguf")
    refused(bases("llama") / "a.bundle", "new", "expected the package 'gguf'", tmp_path)

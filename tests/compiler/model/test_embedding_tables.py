"""Embedding tables of float32 checkpoints: held in bfloat16, unless something needs them as they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DebertaV2Model,
)

import tiny
import tiny_models
import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_tensors
from weightpager.backends.torch.export import export_task
from weightpager.backends.verify import verify
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.compiler import task_file
from weightpager.compiler.model import dense_model
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.nn.embedding import NarrowEmbedding
from weightpager.page_dtype import PageDtype

INPUTS = {"input_ids": torch.tensor([[2, 5, 9, 11, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
TABLES = {f"base_model.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
WORDS = "base_model.embed_tokens.weight"


def narrow(bundle: Path, file: str = RESIDENT) -> set[str]:
    """What a parameter file has in bfloat16; all else that is floating is float32."""
    tensors = load_file(bundle / file)
    rest = {t.dtype for t in tensors.values() if t.is_floating_point() and t.dtype != torch.bfloat16}
    assert rest <= {torch.float32}
    return {name for name, tensor in tensors.items() if tensor.dtype == torch.bfloat16}


def outputs(bundle: Path) -> dict[str, Tensor]:
    with wp.Engine.from_pretrained(bundle) as engine:
        found = {}
        for task in engine.bundle.tasks:
            with engine.task(task) as module, torch.inference_mode():
                found[task] = module(**INPUTS).logits
        return found


def exported(bundle: Path, task: str, out: Path, kind: Any = AutoModelForSequenceClassification) -> nn.Module:
    return kind.from_pretrained(export_task(Bundle.open(bundle), task, out)).eval()


def widen(bundle: Path, change: Callable[[Tensor], Tensor] = lambda table: table) -> None:
    """What versions before this one wrote."""
    rewrite_tensors(
        bundle, RESIDENT, lambda tensors: tensors.update({name: change(tensors[name].float()) for name in TABLES})
    )


def unrounded(table: Tensor) -> Tensor:
    return table * (1 + 1e-4 * torch.rand(table.shape, generator=torch.Generator().manual_seed(0)))


def pet(folder: Path) -> dict[str, Any]:
    content = tiny.assistant(folder)
    del content["block"], content["page"], content["dtype"]
    return content | {"tasks": {"pet": tiny.classification(folder, "pet", {"cat": ["cat"], "dog": ["dog"]})}}


def llama(folder: Path, kind: str, *, tied: bool) -> dict[str, Any]:
    """A task file of one task on a decoder in float32."""
    tiny_models.llama(folder / "llama", vocab_size=16, tie_word_embeddings=tied)
    tiny.tokenizer().save_pretrained(folder / "llama")
    made = {
        "words": lambda: tiny.text(folder, "words", tiny.WORDS[:3]),
        "animal": lambda: tiny.classification(folder, "animal", {"cat": ["cat"], "dog": ["dog"]}),
    }
    content = {
        "model": str(folder / "llama"),
        "dtype": "bfloat16",
        "sparsity": 0.5,
        "training": {"steps": 4, "batch": 4},
    }
    calibration = {"items": 8, "max_length": 16, "batch": 4}
    return content | {"calibration": calibration, "tasks": {kind: made[kind]()}}


def test_tables_are_bfloat16_and_all_else_is_float32(assistant_bundle: Path, tmp_path: Path) -> None:
    assert narrow(assistant_bundle) == TABLES
    for task, logits in outputs(assistant_bundle).items():
        assert narrow(assistant_bundle, private_file(task)) == set()
        assert logits.dtype == torch.float32
    model = exported(assistant_bundle, "animal", tmp_path / "out")
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    with torch.inference_mode():
        torch.testing.assert_close(outputs(assistant_bundle)["animal"], model(**INPUTS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("pages", "rounded"), [("bfloat16", True), ("int8", True), ("float32", False)])
def test_tables_are_rounded_where_pages_are(tmp_path: Path, pages: PageDtype, rounded: bool) -> None:
    found = dense_model.load(task_file.from_dict(tiny.assistant(tmp_path)))
    form = ParameterFormat.of(found.config, found.models, pages, BlockShape(8, 16))
    assert form.dtype == torch.float32
    assert form.tables == (TABLES if rounded else set())


@pytest.mark.slow
def test_pages_of_float32_promise_exact_values(tmp_path: Path) -> None:
    bundle = wp.compile(tiny.assistant(tmp_path, dtype="float32"), out=tmp_path / "a.bundle")
    assert narrow(bundle.path) == set()
    tensors = load_file(bundle.path / RESIDENT)
    assert not any(torch.equal(tensors[name], tensors[name].bfloat16().float()) for name in TABLES)


def test_a_table_with_a_tied_head_stays(writer_bundle: Path) -> None:
    assert narrow(writer_bundle) == set()
    with wp.Engine.from_pretrained(writer_bundle) as engine, engine.task("animals") as module:
        assert module.lm_head.weight is module.get_input_embeddings().weight


@pytest.mark.slow
def test_a_decoder_whose_head_is_its_own_generates_what_its_export_does(tmp_path: Path) -> None:
    bundle = wp.compile(llama(tmp_path, "words", tied=False), out=tmp_path / "a.bundle")
    assert narrow(bundle.path) == {WORDS}
    model = exported(bundle.path, "words", tmp_path / "out", AutoModelForCausalLM)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with wp.Engine.from_pretrained(bundle.path) as engine, engine.task("words") as module:
        assert isinstance(module.get_input_embeddings(), NarrowEmbedding)
        assert module.generate(**INPUTS, **options).tolist() == model.generate(**INPUTS, **options).tolist()
        # A cache of fixed size is made in what transformers takes for the model's dtype.
        options |= {"cache_implementation": "static", "disable_compile": True}
        assert module.generate(**INPUTS, **options).tolist() == model.generate(**INPUTS, **options).tolist()


@pytest.mark.slow
def test_a_model_that_reads_a_table_past_the_lookup_gets_it_wide(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    relative = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
    config = DebertaV2Config(vocab_size=16, max_position_embeddings=64, initializer_range=0.2, **sizes, **relative)
    DebertaV2Model(config).save_pretrained(tmp_path / "deberta")
    tiny.tokenizer().save_pretrained(tmp_path / "deberta")
    bundle = wp.compile(pet(tmp_path) | {"model": str(tmp_path / "deberta")}, out=tmp_path / "a.bundle")
    assert "base_model.encoder.rel_embeddings.weight" in narrow(bundle.path)
    model = exported(bundle.path, "pet", tmp_path / "out")
    with torch.inference_mode():
        torch.testing.assert_close(outputs(bundle.path)["pet"], model(**INPUTS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_bundle_with_wide_tables_opens_and_computes_with_them(assistant_bundle: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(assistant_bundle, tmp_path / "old.bundle"))
    widen(old)
    now, before = outputs(assistant_bundle), outputs(old)
    assert all(torch.equal(now[task], before[task]) for task in now)
    widen(old, unrounded)
    assert verify(old).problems == ()
    model = exported(old, "animal", tmp_path / "out")
    with wp.Engine.from_pretrained(old) as engine, engine.task("animal") as module, torch.inference_mode():
        assert type(module.get_input_embeddings()) is nn.Embedding
        assert torch.equal(
            module.get_input_embeddings().weight,
            load_file(old / RESIDENT)["base_model.embeddings.word_embeddings.weight"],
        )
        torch.testing.assert_close(module(**INPUTS).logits, model(**INPUTS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_bundle_with_wide_tables_keeps_them_when_it_grows(assistant_bundle: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(assistant_bundle, tmp_path / "old.bundle"))
    widen(old, unrounded)
    grown = wp.compile(pet(tmp_path), out=tmp_path / "grown.bundle", base=old)
    assert (grown.path / RESIDENT).read_bytes() == (old / RESIDENT).read_bytes()
    assert not TABLES & load_file(grown.path / private_file("pet")).keys()
    before, after = outputs(old), outputs(grown.path)
    assert all(torch.equal(before[task], after[task]) for task in before)


@pytest.mark.slow
def test_a_new_task_looks_up_in_the_bases_narrow_tables(assistant_bundle: Path, tmp_path: Path) -> None:
    grown = wp.compile(pet(tmp_path), out=tmp_path / "grown.bundle", base=assistant_bundle)
    assert not TABLES & load_file(grown.path / private_file("pet")).keys()
    before, after = outputs(assistant_bundle), outputs(grown.path)
    assert all(torch.equal(before[task], after[task]) for task in before)


@pytest.mark.slow
def test_a_new_task_with_a_tied_head_brings_a_wide_table(tmp_path: Path) -> None:
    base = wp.compile(llama(tmp_path, "animal", tied=True), out=tmp_path / "base.bundle")
    assert narrow(base.path) == {WORDS}
    grown = wp.compile(llama(tmp_path, "words", tied=True), out=tmp_path / "grown.bundle", base=base.path)
    own, shared = load_file(grown.path / private_file("words")), load_file(grown.path / RESIDENT)
    assert own[WORDS].dtype == torch.float32
    assert torch.equal(own[WORDS], shared[WORDS].float())
    model = exported(grown.path, "words", tmp_path / "out", AutoModelForCausalLM)
    after = outputs(grown.path)
    assert torch.equal(outputs(base.path)["animal"], after["animal"])
    with torch.inference_mode():
        torch.testing.assert_close(after["words"], model(**INPUTS).logits, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_without_a_type_brings_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def warns(_: object) -> None:
        pytest.fail("`torch_dtype` is deprecated! Use `dtype` instead!")

    monkeypatch.setattr(DebertaV2Config, "torch_dtype", property(warns))
    assert ParameterFormat.of(DebertaV2Config(dtype=None), {}, "float32", BlockShape(8, 16)).dtype == torch.float32

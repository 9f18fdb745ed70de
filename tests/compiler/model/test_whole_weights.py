"""Weights that stay whole in memory beside pages of few bits: stored and held once, as blocks that kernels read."""

from __future__ import annotations

import json
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
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaForCausalLM,
)

import tiny
import tiny_models
import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_manifest, rewrite_tensors
from command import Command
from weightpager.backends.torch.export import export_task, in_original_order
from weightpager.backends.torch.parameters import read_parameters, widened
from weightpager.backends.verify import verify
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.bundle.garbage import collect
from weightpager.bundle.report.page_statistics import paged_share
from weightpager.compiler.model.paged_weights import whole_weights
from weightpager.compiler.repack import repack
from weightpager.errors import BundleError
from weightpager.kernels.torch import reference
from weightpager.nn.embedding import WholeEmbedding, WholeLinear
from weightpager.nn.linear import FlatLinear, PagedLinear

INPUTS = {"input_ids": torch.tensor([[2, 5, 9, 11, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
WORDS = "base_model.embed_tokens.weight"
POOLER = "base_model.pooler.dense.weight"
BLOCK = BlockShape(8, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tied")
    wp.compile(tiny.writer(made, dtype="int4"), out=made / "tied.bundle")
    return made


@pytest.fixture
def tied(folder: Path) -> Path:
    return folder / "tied.bundle"


@pytest.fixture
def copied(tied: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tied, tmp_path / "copied.bundle"))


def outputs(bundle: Path, **options: Any) -> dict[str, Tensor]:
    with wp.Engine.from_pretrained(bundle, **options) as engine, torch.inference_mode():
        found = {}
        for task in engine.bundle.tasks:
            with engine.task(task) as module:
                found[task] = module(**INPUTS).logits
        return found


def exported(bundle: Path, task: str, out: Path) -> nn.Module:
    return AutoModelForCausalLM.from_pretrained(export_task(Bundle.open(bundle), task, out)).eval()


def decoder(folder: Path, kind: str, **changes: Any) -> dict[str, Any]:
    """A task file of one task on a tied decoder."""
    tiny_models.llama(folder / "llama", vocab_size=16)
    tiny.tokenizer().save_pretrained(folder / "llama")
    made = {
        "words": lambda: tiny.text(folder, "words", tiny.WORDS[:3]),
        "animal": lambda: tiny.classification(folder, "animal", {"cat": ["cat"], "dog": ["dog"]}),
    }
    content = {"model": str(folder / "llama"), "dtype": "int4", "sparsity": 0.5, "tasks": {kind: made[kind]()}}
    calibration = {"items": 8, "max_length": 16, "batch": 4}
    return content | {"calibration": calibration, "training": {"steps": 4, "batch": 4}} | changes


def test_a_table_is_stored_once_as_blocks(folder: Path, tied: Path) -> None:
    bundle = Bundle.open(tied)
    (entry,) = bundle.manifest.whole_weights
    assert (entry.name, entry.rows, entry.columns, entry.dtype) == (WORDS, 16, 64, "int8")
    stored = load_file(tied / RESIDENT)[WORDS]
    assert (stored.dtype, tuple(stored.shape)) == (torch.uint8, entry.stored(bundle.manifest.block_shape).shape)
    assert not any(WORDS in load_file(tied / private_file(task)) for task in bundle.tasks)
    model = LlamaForCausalLM.from_pretrained(folder / "llama")
    table = model.get_input_embeddings().weight.detach()
    error = exported(tied, "animals", folder / "whole").get_input_embeddings().weight.detach() - table
    assert 0 < float(error.abs().max()) < float(table.abs().max()) / 127


def test_an_engine_computes_with_the_blocks_themselves(tied: Path, tmp_path: Path) -> None:
    with (
        wp.Engine.from_pretrained(tied) as engine,
        engine.task("animals") as first,
        engine.task("numbers") as second,
    ):
        words, head = first.get_input_embeddings(), first.get_output_embeddings()
        assert isinstance(words, WholeEmbedding)
        assert isinstance(head, WholeLinear)
        assert words.table is head.paged_weight is second.get_input_embeddings().table
        wide = widened(engine.bundle, read_parameters(engine.bundle, RESIDENT))[WORDS]
        assert torch.equal(words.weight, wide)
        assert torch.equal(head.weight, wide)
        assert torch.equal(words(INPUTS["input_ids"]), wide[INPUTS["input_ids"]])
        assert first.dtype == torch.float32
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
        assert first.generate(**INPUTS, **options).shape == (1, 9)
    for task, logits in outputs(tied).items():
        model = exported(tied, task, tmp_path / task)
        with torch.inference_mode():
            torch.testing.assert_close(logits, model(**INPUTS).logits, rtol=1e-3, atol=1e-3)


def test_an_export_holds_what_the_kernels_multiply_with_bit_for_bit(copied: Path, tmp_path: Path) -> None:
    for file in (RESIDENT, *map(private_file, Bundle.open(copied).tasks)):
        rewrite_tensors(copied, file, in_bfloat16)  # so that the task computes in it, as one of such a checkpoint
    model = exported(copied, "animals", tmp_path / "out")
    with wp.Engine.from_pretrained(copied) as engine, engine.task("animals") as module:
        assert module.dtype == torch.bfloat16
        layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, PagedLinear)}
        used = {
            WORDS if isinstance(layer, WholeLinear) else f"base_{name}.weight": reference.dense_weight(
                layer.paged_weight
            )
            for name, layer in layers.items()
        }
        expected = in_original_order(engine.bundle, "animals", used)
    assert used.keys() == {WORDS, *(f"{entry.name}.weight" for entry in engine.bundle.manifest.weights)}
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(name.removeprefix("base_")), weight)


def in_bfloat16(tensors: dict[str, Tensor]) -> None:
    tensors.update({name: each.bfloat16() for name, each in tensors.items() if each.is_floating_point()})


def test_a_task_that_computes_in_bfloat16_does_so_over_blocks(tied: Path) -> None:
    narrow, wide = outputs(tied, dtype="bfloat16"), outputs(tied)
    for task, logits in narrow.items():
        assert logits.dtype == torch.bfloat16
        assert float((logits.float() - wide[task]).norm() / wide[task].norm()) < 2e-2


def test_budgets_and_shares_count_what_is_there(tied: Path) -> None:
    bundle = Bundle.open(tied)
    (entry,) = bundle.whole_weights(RESIDENT)
    block = bundle.manifest.block_shape
    counted = footprint(bundle)
    assert counted.resident == bundle.entry(RESIDENT).bytes
    with wp.Engine.from_pretrained(tied) as engine, engine.task("animals") as module:
        weight = module.lm_head.paged_weight
        tensors = [weight.arena, weight.page_table, weight.crow_indices, weight.col_indices, weight.locations]
        assert sum(tensor.nbytes for tensor in tensors) <= entry.memory(block)
    assert paged_share(bundle).others["embedding, tied to lm_head.weight"] == 16 * 64


def test_inspect_says_that_a_table_is_whole_and_in_which_dtype(tied: Path, weightpager: Command) -> None:
    (found,) = json.loads(weightpager("inspect", tied, "--json").out)["whole_weights"]
    assert (found["name"], found["rows"], found["columns"], found["dtype"]) == (WORDS, 16, 64, "int8")
    said = " ".join(weightpager("inspect", tied).out.split())
    assert f"tied: {WORDS} = lm_head.weight, stored once" in said
    assert f"whole in memory as int8: {WORDS}, 1.4 KiB; 'weightpager trim' makes it smaller" in said


def test_packing_again_and_dropping_tasks_keep_it(tied: Path, copied: Path, tmp_path: Path) -> None:
    before = outputs(tied)
    repack(tied, tmp_path / "tidy.bundle", without=["numbers"], page=8192)
    collect(copied, drop=["numbers"])
    for bundle in (tmp_path / "tidy.bundle", copied):
        assert verify(bundle).problems == ()
        assert torch.equal(outputs(bundle)["animals"], before["animals"])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m["whole_weights"][0].update(rows=0), "rows"),
        (lambda m: m["whole_weights"][0].update(columns=1 << 30), "columns"),
        (lambda m: m["whole_weights"][0].update(rows=32), WORDS),
        (lambda m: m["whole_weights"][0].update(columns=72), WORDS),
        (lambda m: m["whole_weights"][0].update(rows=2**31 - 1, columns=2**24), WORDS),
        (lambda m: m["whole_weights"][0].update(dtype="int4"), WORDS),
        (lambda m: m["whole_weights"][0].update(dtype="float32"), "dtype"),
        (lambda m: m["whole_weights"].append(m["whole_weights"][0]), "whole weight names"),
    ],
)
def test_entries_that_do_not_fit_are_refused(copied: Path, change: Callable[[Any], object], field: str) -> None:
    rewrite_manifest(copied, change)
    with pytest.raises(BundleError, match=field), wp.Engine.from_pretrained(copied):
        pass
    assert verify(copied).problems


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda m: m["whole_weights"][0].update(rows=15), "whole_weights"),  # of as many blocks
        (lambda m: m.update(whole_weights=[]), "embed_tokens"),
    ],
)
def test_entries_that_fit_the_file_but_not_the_architecture_are_refused(
    copied: Path, change: Callable[[Any], object], field: str
) -> None:
    rewrite_manifest(copied, change)
    with (
        pytest.raises(BundleError, match=field),
        wp.Engine.from_pretrained(copied) as engine,
        engine.task("animals"),
    ):
        pass


def test_a_bundle_with_an_ordinary_table_opens_as_before(copied: Path) -> None:
    wide = widened(Bundle.open(copied), read_parameters(Bundle.open(copied), RESIDENT))[WORDS]
    after = outputs(copied)
    rewrite_tensors(copied, RESIDENT, lambda tensors: tensors.update({WORDS: wide}))
    rewrite_manifest(copied, lambda m: m.pop("whole_weights"))
    with wp.Engine.from_pretrained(copied) as engine, engine.task("animals") as module:
        assert isinstance(module.lm_head, FlatLinear)
        assert module.lm_head.weight is module.get_input_embeddings().weight
    for task, logits in outputs(copied).items():
        torch.testing.assert_close(logits, after[task], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_new_task_computes_with_the_bases_table(tmp_path: Path) -> None:
    base = wp.compile(decoder(tmp_path, "words"), out=tmp_path / "base.bundle")
    grown = wp.compile(decoder(tmp_path, "animal"), out=tmp_path / "grown.bundle", base=base.path)
    assert grown.manifest.whole_weights == base.manifest.whole_weights != []
    assert (grown.path / RESIDENT).read_bytes() == (base.path / RESIDENT).read_bytes()
    assert WORDS not in load_file(grown.path / private_file("animal"))
    after = outputs(grown.path)
    assert torch.equal(outputs(base.path)["words"], after["words"])
    with wp.Engine.from_pretrained(grown.path) as engine, engine.task("animal") as module:
        assert isinstance(module.get_input_embeddings(), WholeEmbedding)


@pytest.mark.slow
def test_an_ordinary_table_of_a_base_stays_when_a_language_model_comes(tmp_path: Path) -> None:
    base = wp.compile(decoder(tmp_path, "animal"), out=tmp_path / "base.bundle")
    assert base.manifest.whole_weights == []
    assert load_file(base.path / RESIDENT)[WORDS].dtype == torch.bfloat16
    grown = wp.compile(decoder(tmp_path, "words"), out=tmp_path / "grown.bundle", base=base.path)
    assert [entry.name for entry in grown.manifest.whole_weights] == [WORDS]
    assert load_file(grown.path / private_file("words"))[WORDS].dtype == torch.uint8
    assert verify(grown.path).problems == ()
    assert footprint(grown).private >= grown.whole_weights(private_file("words"))[0].bytes(grown.manifest.block_shape)
    after = outputs(grown.path)
    assert torch.equal(outputs(base.path)["animal"], after["animal"])
    model = exported(grown.path, "words", tmp_path / "out")
    with torch.inference_mode():
        torch.testing.assert_close(after["words"], model(**INPUTS).logits, rtol=1e-3, atol=1e-3)
    collect(grown.path, drop=["words"])
    assert Bundle.open(grown.path).manifest.whole_weights == []


@pytest.mark.slow
def test_a_checkpoint_in_bfloat16_computes_in_it(tmp_path: Path) -> None:
    content = decoder(tmp_path, "words", dtype="int8")
    LlamaForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "llama")
    bundle = wp.compile(content, out=tmp_path / "a.bundle")
    assert [entry.dtype for entry in bundle.manifest.whole_weights] == ["int8"]
    assert outputs(bundle.path)["words"].dtype == torch.bfloat16
    assert exported(bundle.path, "words", tmp_path / "out").dtype == torch.float32  # which alone holds its weights


class Scaled(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 2 * super().forward(ids)


def test_what_is_used_otherwise_is_no_such_table(tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny.llama(tmp_path / "llama"))
    assert whole_weights({"a": model}, BLOCK) == {WORDS: (16, 64)}
    assert whole_weights({}, BLOCK) == {}
    words = model.model.embed_tokens
    model.model.embed_tokens = Scaled(16, 64)
    model.model.embed_tokens.weight = words.weight
    assert whole_weights({"a": model}, BLOCK) == {}
    assert whole_weights({"a": model, "b": LlamaForCausalLM.from_pretrained(tmp_path / "llama")}, BLOCK) == {}


def test_a_pooler_and_a_head_of_its_own_are_whole_but_heads_of_labelled_tasks_are_not(tmp_path: Path) -> None:
    untied = LlamaForCausalLM.from_pretrained(
        tiny_models.llama(tmp_path / "llama", tie_word_embeddings=False, vocab_size=16)
    )
    assert whole_weights({"a": untied}, BLOCK) == {"lm_head.weight": (16, 64)}
    tiny_models.bert(tmp_path / "bert")
    labels, tokens = (
        kind.from_pretrained(tmp_path / "bert", num_labels=20)
        for kind in (BertForSequenceClassification, BertForTokenClassification)
    )
    assert whole_weights({"labels": labels, "tokens": tokens}, BLOCK) == {POOLER: (64, 64)}
    assert whole_weights({"tokens": tokens}, BLOCK) == {}


def test_a_task_computes_with_the_blocks_of_its_pooler(tmp_path: Path) -> None:
    bundle = wp.compile(tiny.assistant(tmp_path, dtype="int4", compare="none"), out=tmp_path / "pooled.bundle")
    (entry,) = bundle.whole_weights(RESIDENT)
    assert (entry.name, entry.rows, entry.columns, entry.dtype) == (POOLER, 64, 64, "int8")
    with wp.Engine.from_pretrained(bundle.path) as engine, engine.task("animal") as module, torch.inference_mode():
        assert isinstance(module.bert.pooler.dense, WholeLinear)
        logits = module(**INPUTS).logits
    model = AutoModelForSequenceClassification.from_pretrained(export_task(bundle, "animal", tmp_path / "out")).eval()
    with torch.inference_mode():
        torch.testing.assert_close(logits, model(**INPUTS).logits, rtol=1e-3, atol=1e-3)

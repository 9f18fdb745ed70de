"""The joint least-squares refit: against a dense solver, and on real layers."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.func import functional_call
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

import tiny
import tiny_llava
from sparse import copied, masks_of
from weightpager.compiler import data as task_data
from weightpager.compiler.data import Batch
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.model.checkpoint import IN_MEMORY, Scratch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.recovery import closed_form
from weightpager.compiler.recovery.closed_form import overlaid, refit
from weightpager.compiler.recovery.layer_stream import LayerStream
from weightpager.compiler.recovery.least_squares import refitted
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.task_file.file import from_dict
from weightpager.compiler.training.device import autocast
from weightpager.compiler.training.masks import Masks


@pytest.fixture(params=["encoder", "decoder"])
def trial(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[DenseModel, dict[str, list[Batch]]]:
    content = tiny.assistant(tmp_path) if request.param == "encoder" else tiny.writer(tmp_path)
    source = sources.load(from_dict(content))
    file = source.task_file
    batches = {}
    for name, spec in file.tasks.items():
        data = task_data.load(name, spec, source.tokenizer, source.classes(name), file.max_length_of(name))
        batches[name] = data.calibration(32, 8)
    return source, batches


def errors(dense: DenseModel, sparse: DenseModel, masks: Masks, batches: dict[str, list[Batch]]) -> float:
    """Mean squared difference of the base models' last hidden states."""
    total = 0.0
    for task, some in batches.items():
        for batch in some:
            wanted = dense.models[task](**batch.inputs, output_hidden_states=True).hidden_states[-1]
            weights = masks.parameters(sparse, task, sparse.paged)
            found = functional_call(
                sparse.models[task], weights, kwargs={**batch.inputs, "output_hidden_states": True}
            ).hidden_states[-1]
            total += float((wanted - found)[batch.inputs["attention_mask"].bool()].square().mean())
    return total


def test_a_layer_takes_what_it_takes_in_the_whole_model(trial: tuple[DenseModel, dict[str, list[Batch]]]) -> None:
    source, batches = trial
    task, some = next(iter(batches.items()))
    names = [info.name for info in source.paged if info.layer == 1]
    name = names[-1]
    stream = LayerStream(source.models[task], some)
    stream.advance(0, {})
    for factor in (1.0, 3.0):  # a run leaves nothing behind that the next one, with other weights, would see
        for other in names:
            source.linear(task, other).weight.data.mul_(factor)
        for found, batch in zip(stream.inputs(1, {}, name), some, strict=True):
            seen: list[torch.Tensor] = []
            hook = source.linear(task, name).register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
            with torch.inference_mode(), autocast(torch.device("cpu")):
                source.models[task](**batch.inputs)
            hook.remove()
            wanted = seen[0].float()[batch.inputs["attention_mask"].bool()]
            assert torch.allclose(found, wanted, atol=1e-2)


def sliding(family: str) -> PreTrainedModel:
    """A decoder whose layers see a window and the whole text by turns."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "vocab_size": 32, "head_dim": 8}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "sliding_window": 4}
    torch.manual_seed(0)
    if family == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**sizes, initializer_range=0.5)).eval()
    layers = ["sliding_attention", "full_attention"] * 2
    return Gemma3ForCausalLM(Gemma3TextConfig(**sizes, layer_types=layers, initializer_range=0.5)).eval()


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_every_layer_is_given_its_own_mask_and_positions(family: str) -> None:
    model, ids = sliding(family), torch.arange(1, 25).view(2, 12)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    stream = LayerStream(model, [Batch(inputs, ids)])
    with torch.inference_mode(), autocast(torch.device("cpu")):
        wanted = model(**inputs, output_hidden_states=True).hidden_states
    for layer in range(4):
        (found,) = stream.inputs(layer, {}, f"base_model.layers.{layer}.self_attn.q_proj")
        normed = model.base_model.get_submodule(f"layers.{layer}.input_layernorm")(wanted[layer])
        torch.testing.assert_close(found, normed.detach().float().flatten(0, 1), rtol=0.0, atol=1e-2)
        stream.advance(layer, {})


@pytest.mark.slow
def test_refit_brings_the_sparse_model_closer(trial: tuple[DenseModel, dict[str, list[Batch]]]) -> None:
    dense, batches = trial
    masks = masks_of(dense, 0.6, seed=0)
    sparse = copied(dense)
    with torch.inference_mode():
        before = errors(dense, sparse, masks, batches)
        refit(dense, sparse, masks, batches, Journal.none(), lambda _done, _total: None)
        after = errors(dense, sparse, masks, batches)
    assert after < 0.8 * before


@pytest.mark.slow
def test_refit_leaves_a_dense_model_as_it_is(trial: tuple[DenseModel, dict[str, list[Batch]]]) -> None:
    dense, batches = trial
    sparse = copied(dense)
    refit(dense, sparse, masks_of(dense, 1.1, seed=0), batches, Journal.none(), lambda _done, _total: None)
    for info in dense.paged:
        for task in batches:
            ours, theirs = sparse.linear(task, info.name).weight, dense.linear(task, info.name).weight
            assert torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.slow
def test_a_refit_laid_over_a_model_leaves_it_and_finds_the_same(
    trial: tuple[DenseModel, dict[str, list[Batch]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.model.checkpoint._LEAST", 1)
    dense, batches = trial
    masks, whole = masks_of(dense, 0.6, seed=0), copied(dense)
    before = copied(dense)
    refit(dense, whole, masks, batches, Journal.none(), lambda _done, _total: None)
    for scratch in (IN_MEMORY, Scratch(tmp_path)):
        under = replace(dense, scratch=scratch)
        sparse = overlaid(under)
        refit(under, sparse, masks, batches, Journal.none(), lambda _done, _total: None)
        for task in batches:
            for name, tensor in sparse.parameters(task).items():
                wanted, ours = whole.parameters(task)[name], under.parameters(task)[name]
                assert torch.equal(tensor, wanted)
                assert torch.equal(ours, before.parameters(task)[name])
                assert (tensor is ours) == (name not in {f"{info.name}.weight" for info in dense.paged})


@pytest.mark.slow
def test_a_refit_for_other_masks_is_done_again(
    trial: tuple[DenseModel, dict[str, list[Batch]]], tmp_path: Path
) -> None:
    dense, batches = trial
    first, others = (masks_of(dense, 0.6, seed=seed) for seed in (0, 1))
    for masks, done_again in ((first, True), (first, False), (others, True), (others, False)):
        told = Mock()
        refit(dense, copied(dense), masks, batches, Journal(tmp_path / "j", "one"), told)
        assert told.called == done_again


def test_a_towers_hidden_states_are_gone_before_those_of_words_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources.load(from_dict(tiny_llava.watcher(tmp_path)))
    made: list[tuple[range, weakref.ref[LayerStream]]] = []

    class Watched(LayerStream):
        def __init__(self, *arguments: Any, part: range, **options: Any) -> None:
            assert [other for other, stream in made if other != part and stream() is not None] == []
            super().__init__(*arguments, part=part, **options)
            made.append((part, weakref.ref(self)))

    monkeypatch.setattr(closed_form, "LayerStream", Watched)
    file = source.task_file
    batches = {}
    for name, spec in file.tasks.items():
        length, pictures = file.max_length_of(name), source.picture_reader
        data = task_data.load(name, spec, source.tokenizer, (), length, pictures=pictures)
        batches[name] = data.calibration(4, 2)
    refit(source, copied(source), masks_of(source, 0.6, seed=0), batches, Journal.none(), lambda _done, _total: None)
    assert {part for part, _ in made} == set(source.stretches)


def killing(layers_done: int) -> Callable[[int, int], None]:
    def killed(done: int, _total: int) -> None:
        if done == layers_done:
            raise KeyboardInterrupt

    return killed


@pytest.mark.slow
def test_a_killed_refit_goes_on_with_the_next_layer(
    trial: tuple[DenseModel, dict[str, list[Batch]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    monkeypatch.setattr("weightpager.compiler.resume.journal.SHARE", 1.0)
    dense, batches = trial
    masks, whole = masks_of(dense, 0.6, seed=0), copied(dense)
    refit(dense, whole, masks, batches, Journal.none(), lambda _done, _total: None)
    for layers_done in (1, 2):
        journal = tmp_path / f"killed after {layers_done}"
        with pytest.raises(KeyboardInterrupt):
            refit(dense, copied(dense), masks, batches, Journal(journal, "one"), killing(layers_done))
        resumed, solved = copied(dense), Mock(wraps=refitted)
        with monkeypatch.context() as patch:
            patch.setattr(closed_form, "refitted", solved)
            refit(dense, resumed, masks, batches, Journal(journal, "one"), lambda _done, _total: None)
        assert solved.call_count == sum(info.layer >= layers_done for info in dense.paged)
        for info in dense.paged:
            assert torch.equal(*(s.linear(next(iter(batches)), info.name).weight for s in (resumed, whole)))

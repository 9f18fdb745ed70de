"""Permutations that change nothing but the order: of every known architecture, in any order."""

from __future__ import annotations

import copy
import logging
import tracemalloc
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

import tiny
import weightpager as wp
from weightpager.backends.torch.export import export_task
from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle import Bundle
from weightpager.bundle.format.placement import Permutations
from weightpager.compiler import task_file
from weightpager.compiler.model import dense_model
from weightpager.compiler.model.dense_model import parameters
from weightpager.compiler.prepare import prepare
from weightpager.compiler.reorder.apply import apply, composed, for_new_tasks
from weightpager.compiler.reorder.dimensions import Dimension, Part, dimensions
from weightpager.compiler.reorder.search import Elements, gather
from weightpager.compiler.selection import block_choice
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.selection.saliency import block_saliency, calibrate
from weightpager.nn.experts import set_upright

_SIZES: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT: dict[str, Any] = _SIZES | {"vocab_size": 32, "initializer_range": 0.5, "pad_token_id": 0}
_GROUPED = _TEXT | {"num_key_value_heads": 2}
_WORDS: dict[str, Any] = {"vocab_size": 32, "initializer_range": 0.5, "pad_token_id": 0}
_FALCON = _WORDS | {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "bias": True}
_GPT2 = _WORDS | {"n_embd": 48, "n_layer": 2, "n_head": 4}
_IMAGE = _SIZES | {"image_size": 16, "patch_size": 8, "initializer_range": 0.5}


def upright(model: PreTrainedModel) -> PreTrainedModel:
    set_upright(model)
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**_TEXT)),
    "bert tokens": lambda: BertForTokenClassification(BertConfig(**_TEXT)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**_TEXT)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GROUPED, tie_word_embeddings=True)),
    "llama classes": lambda: LlamaForSequenceClassification(LlamaConfig(**_GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GROUPED, head_dim=16)),
    "gpt2": lambda: upright(GPT2LMHeadModel(GPT2Config(**_GPT2))),
    "gpt2 classes": lambda: upright(GPT2ForSequenceClassification(GPT2Config(**_GPT2))),
    "falcon": lambda: FalconForCausalLM(FalconConfig(**_FALCON)),
    "falcon 40b": lambda: FalconForCausalLM(FalconConfig(**_FALCON, new_decoder_architecture=True, num_kv_heads=2)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**_IMAGE)),
}


@cache
def model(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    made = MODELS[name]().eval()
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.ndim == 1:  # norms of ones and biases of zeros would hide a wrong order
                tensor.uniform_(0.5, 1.5)
    return made


def answers(found: PreTrainedModel) -> Tensor:
    if found.config.model_type == "vit":
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
    else:
        inputs = {"input_ids": torch.tensor([[5, 9, 2, 30, 11], [7, 3, 8, 0, 0]])}
        inputs["attention_mask"] = (inputs["input_ids"] > 0).long()
    with torch.inference_mode():
        logits: Tensor = found(**inputs).logits
    return logits


def shuffled(known: tuple[Dimension, ...], seed: int) -> list[tuple[Dimension, np.ndarray]]:
    drawn = np.random.default_rng(seed)
    return [(dimension, drawn.permuted(dimension.unchanged, axis=1)) for dimension in known]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_order_gives_the_same_answers_and_can_be_taken_back(name: str, seed: int) -> None:
    original = model(name)
    moved = {"task": copy.deepcopy(original)}
    permutations = composed(shuffled(dimensions(moved), seed))
    apply(moved, permutations)
    torch.testing.assert_close(answers(moved["task"]), answers(original), rtol=1e-3, atol=1e-3)
    apply(moved, permutations.inverse())
    for key, tensor in parameters(moved["task"]).items():
        assert torch.equal(tensor, parameters(original)[key]), key


@pytest.mark.parametrize(
    ("old", "new"),
    [("bert tokens", "bert"), ("bert", "bert tokens"), ("llama", "llama classes"), ("gpt2", "gpt2 classes")],
)
def test_a_new_task_reads_a_permuted_base_as_before(old: str, new: str) -> None:
    base = composed(shuffled(dimensions({"old": model(old)}), seed=2))
    added = {"new": copy.deepcopy(model(new))}
    apply(added, Permutations({**base.orders, **for_new_tasks(base, added).orders}))
    torch.testing.assert_close(answers(added["new"]), answers(model(new)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_every_matrix_of_a_layer_moves(name: str) -> None:
    moved = {"task": copy.deepcopy(model(name))}
    apply(moved, composed(shuffled(dimensions(moved), seed=1)))
    before = parameters(model(name))
    still = [key for key, tensor in parameters(moved["task"]).items() if torch.equal(tensor, before[key])]
    assert not [key for key in still if ".layer" in key and not key.endswith(("q_norm.weight", "k_norm.weight"))]


def test_a_head_group_and_its_channels_move_in_all_four_projections() -> None:
    found = {dimension.name: dimension for dimension in dimensions({"task": model("llama")})}
    assert (found["layer 1, heads"].groups, found["layer 1, heads"].units) == (1, 2)
    assert (found["layer 1, query heads"].groups, found["layer 1, query heads"].units) == (2, 2)
    channels = found["layer 1, value channels"]
    assert (channels.groups, channels.units) == (2, 12)
    layer = "base_model.layers.1.self_attn"
    assert channels.parts == (Part(f"{layer}.v_proj.weight", 0), Part(f"{layer}.o_proj.weight", 1, repeat=2))


def test_an_unknown_architecture_has_no_dimensions() -> None:
    assert dimensions({"task": GPTNeoXForCausalLM(GPTNeoXConfig(**_SIZES, vocab_size=32))}) == ()


def test_one_unknown_tensor_is_enough_to_leave_a_model_alone() -> None:
    odd = copy.deepcopy(model("llama"))
    odd.base_model.layers[0].mlp.register_parameter("scale", torch.nn.Parameter(torch.ones(40)))
    assert dimensions({"task": odd}) == ()


def test_a_norm_over_all_heads_keeps_heads_in_place() -> None:
    odd = copy.deepcopy(model("qwen3"))
    for layer in odd.base_model.layers:
        layer.self_attn.q_norm.weight = torch.nn.Parameter(torch.ones(64))
    names = {dimension.name for dimension in dimensions({"task": odd})}
    assert names == {"residual", "layer 0, neurons", "layer 1, neurons"}


# ---- The search ----


def elements(seed: int) -> tuple[Elements, tuple[Dimension, ...]]:
    """Two weights, ``up`` [50, 24] and ``down`` [24, 50], of which scattered neurons matter to one task each."""
    block = BlockShape(8, 8)
    drawn = np.random.default_rng(seed)
    owner = drawn.integers(0, 3, 50)
    matter = (owner == np.arange(2)[:, None]).astype(np.float32) + 0.01  # [tasks, neurons]
    noise = drawn.random((2, 50, 24), dtype=np.float32)
    values = {"up": matter[:, :, None] * noise, "down": np.swapaxes(matter[:, :, None] * noise[::-1], 1, 2).copy()}
    grids = {"up": BlockGrid(50, 24, block), "down": BlockGrid(24, 50, block)}
    neurons = Dimension("neurons", 1, 50, (Part("up", 0), Part("down", 1), Part("up bias", 0)))
    return Elements(lambda name, task: values[name][task], 2, grids), (neurons,)


def held(found: Elements, densities: np.ndarray) -> float:
    keep = found.best(densities)
    return sum(float((values * keep[name]).sum()) for name, values in found.blocks().items())


@settings(max_examples=12)
@given(seed=st.integers(0, 1000), density=st.floats(0.1, 0.9))
def test_gathering_never_loses_saliency_from_round_to_round(seed: int, density: float) -> None:
    densities = np.array([density, density])
    kept = []
    for rounds in range(4):
        found, known = elements(seed)
        gather(found, known, densities, rounds)
        kept.append(held(found, densities))
    assert all(after >= before * (1 - 1e-5) for before, after in pairwise(kept))


def test_scattered_neurons_of_a_task_end_in_its_blocks() -> None:
    densities = np.array([0.4, 0.4])
    before, _ = elements(seed=0)
    after, known = elements(seed=0)
    gather(after, known, densities)
    total = sum(values.sum() for name in after.grids for values in after.of(name))
    assert held(before, densities) < 0.6 * total
    assert held(after, densities) > 0.85 * total


@settings(max_examples=12)
@given(seed=st.integers(0, 1000))
def test_gathered_elements_are_the_original_ones_in_the_returned_order(seed: int) -> None:
    found, known = elements(seed)
    steps = gather(found, known, np.array([0.5, 0.25]))
    orders = composed(steps).orders
    original, _ = elements(seed)
    order = orders["up", 0]
    for task in range(2):
        up, down = (list(original.of(name))[task] for name in ("up", "down"))
        np.testing.assert_array_equal(list(found.of("up"))[task], up[order])
        np.testing.assert_array_equal(list(found.of("down"))[task], down[:, order])


def test_gathering_holds_one_weight_of_one_task_at_a_time() -> None:
    tasks, shape = 16, (64, 2048)
    block = BlockShape(8, 8)
    grids = {"up": BlockGrid(*shape, block), "down": BlockGrid(*reversed(shape), block)}
    neurons = Dimension("neurons", 1, 64, (Part("up", 0), Part("down", 1)))

    def read(name: str, task: int) -> np.ndarray:
        here = shape if name == "up" else shape[::-1]
        return np.random.default_rng(task).random(here, dtype=np.float32)

    tracemalloc.start()
    try:
        gather(Elements(read, tasks, grids), [neurons], np.full(tasks, 0.5))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    everything = len(grids) * tasks * 4 * shape[0] * shape[1]
    assert peak < everything / 4


def test_heads_that_fill_whole_blocks_stay() -> None:
    values = np.random.default_rng(0).random((32, 8), dtype=np.float32)
    found = Elements(lambda _name, _task: values, 1, {"query": BlockGrid(32, 8, BlockShape(8, 8))})
    whole = Dimension("heads", 1, 4, (Part("query", 0, inner=8),))
    assert gather(found, [whole], np.array([0.5])) == []


# ---- In the compiler ----


def prepared(content: Mapping[str, Any], **changes: Any) -> Prepared:
    return prepare(task_file.from_dict({**content, **changes}))


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny.assistant, tiny.writer])
def test_a_reordered_model_answers_as_before_and_keeps_more(
    make: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    content = make(tmp_path)
    plain, moved = (prepared(content, reorder=reorder) for reorder in (False, True))
    assert not plain.permutations.orders
    assert moved.permutations.orders
    inputs = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.long)}
    for task in plain.source.models:
        ours, theirs = (found.source.models[task](**inputs).logits for found in (moved, plain))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    assert _kept(moved) > _kept(plain)


def _kept(found: Prepared) -> float:
    """The share of all saliency in the blocks that tasks keep."""
    masks = block_choice.choose_blocks(found).masks
    shares = []
    for number, saliency in enumerate(found.saliency.values()):
        kept = sum(float(values[masks.keep[name][:, number]].sum()) for name, values in saliency.items())
        shares.append(kept / sum(float(values.sum()) for values in saliency.values()))
    return float(np.mean(shares))


def test_reordered_saliency_is_what_calibration_measures_on_the_reordered_model(tmp_path: Path) -> None:
    found = prepared(tiny.writer(tmp_path), reorder=True)
    spec = found.source.task_file.calibration
    for task, data in found.data.items():
        calibration = calibrate(found.source, task, data.calibration(spec.items, spec.batch))
        for name, values in block_saliency(found.source, calibration.items()).items():
            np.testing.assert_allclose(found.saliency[task][name], values, rtol=0.2, atol=values.mean() * 0.05)


def test_a_task_is_exported_in_its_original_order(tmp_path: Path) -> None:
    content = tiny.writer(tmp_path, sparsity=0.0, dtype="float32", reorder=True)
    bundle = wp.compile(content, out=tmp_path / "writer.bundle")
    assert bundle.permutations().orders
    exported = LlamaForCausalLM.from_pretrained(export_task(Bundle.open(bundle.path), "animals", tmp_path / "out"))
    original = LlamaForCausalLM.from_pretrained(content["model"])
    for name, tensor in original.state_dict().items():
        assert torch.equal(exported.state_dict()[name], tensor), name


def test_a_model_whose_answers_would_change_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = (Dimension("wrong", 1, 96, (Part("base_model.layers.0.mlp.up_proj.weight", 0),)),)
    monkeypatch.setattr("weightpager.compiler.reorder.apply.dimensions", lambda _models: wrong)
    content = tiny.writer(tmp_path, reorder=True)
    with caplog.at_level(logging.WARNING):
        found = prepared(content)
    assert "not reordered" in caplog.text
    assert not found.permutations.orders
    fresh = dense_model.load(task_file.from_dict(content))
    for name, tensor in fresh.parameters("animals").items():
        assert torch.equal(found.source.parameters("animals")[name], tensor), name

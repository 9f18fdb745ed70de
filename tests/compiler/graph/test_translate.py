"""What can't be said in a graph's operators is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export._trace import _compiling_state_context
from torch.nn import functional
from transformers.models.mistral import modeling_mistral

from families import ALL_DECODERS, ALL_ENCODERS, config_of
from weightpager.compiler.graph import export
from weightpager.compiler.graph.aten.products import MOST_HEAD
from weightpager.compiler.graph.builder import CallForm
from weightpager.compiler.graph.check import check_graph, give_values
from weightpager.compiler.graph.export import empty_module_of, export_graph
from weightpager.compiler.graph.passes import simplified
from weightpager.compiler.graph.translate import draft_of, in_this_thread_alone
from weightpager.compiler.model.paged_weights import parameters
from weightpager.errors import NotExportableError
from weightpager.graph.reference import run

_FORM = CallForm.of("text-classification")


_ONE_LAYER = config_of("Bert", {**ALL_ENCODERS["Bert"], "num_hidden_layers": 1})


def _bert() -> Any:
    return empty_module_of(_ONE_LAYER, "text-classification", 997)


class _Instead(nn.Module):
    """A part whose result a function makes something else of."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (torch.erfinv, "the operator aten.erfinv.default"),
        (lambda x: x.to(torch.float16).float(), "values of torch.float16"),
        (lambda x: x if x.sum() > 0 else -x, "torch.export: "),
        (lambda x: torch.dropout(x, 0.1, True), "dropout in training"),
        (lambda x: x * x.shape[0], "multiply with a size"),
        (lambda x: x + x[torch.arange(x.shape[0], device="meta"), x.argmax(-1)][:, None], "by several indices"),
        (lambda x: x + x.new_zeros(x.shape[0], 997).sum(1, keepdim=True), "sizes depend on batch, length or classes"),
    ],
)
def test_what_no_operator_says_is_named(function: Callable[[Tensor], Tensor], reason: str) -> None:
    module = _bert()
    module.dropout = _Instead(function)
    with pytest.raises(NotExportableError, match=reason):
        draft_of(module, _FORM, 997)


@pytest.mark.slow
def test_a_branch_by_the_length_of_a_text_is_refused() -> None:
    module = _bert()
    module.bert.embeddings.dropout = _Instead(lambda x: -x if x.shape[1] > 16 else x)
    with pytest.raises(NotExportableError, match="another one for inputs of more than 16"):
        draft_of(module, _FORM, 997)


def test_heads_that_native_code_does_not_take_are_refused() -> None:
    config = config_of("Llama", {**ALL_DECODERS["Llama"], "head_dim": 2 * MOST_HEAD})
    form = CallForm.of("language-modeling")
    with pytest.raises(NotExportableError, match="attention with heads of 512 features, more than 256"):
        draft_of(empty_module_of(config, form.kind, 0), form, 997)


def test_the_deepest_head_is_that_of_native_code() -> None:
    vectors = Path(__file__).parents[3] / "csrc/operators/vector/vectors.hpp"
    assert f"kDeepestHead = {MOST_HEAD}," in vectors.read_text()


def test_a_window_that_the_mask_does_not_hide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_mistral, "create_sliding_window_causal_mask", modeling_mistral.create_causal_mask)
    config, form = config_of("Mistral", ALL_DECODERS["Mistral"]), CallForm.of("language-modeling")
    with pytest.raises(NotExportableError, match="a window that the attention's mask doesn't hide"):
        draft_of(empty_module_of(config, form.kind, 0), form, 997)


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.softmax(-1).cumsum(1) / x.exp().sqrt(),
        lambda x: torch.where(x > 0.1, x, torch.zeros_like(x)) - 2 * x.sigmoid(),
        lambda x: 1 - x.masked_fill(x.lt(0) & x.ge(-1), 0.5),
        lambda x: torch.stack([x.sin(), x.cos()], 1).mean(1) + torch.cat(x.chunk(2, -1)[::-1], -1),
        lambda x: x @ x.mT.contiguous() @ x,
        lambda x: x + x[:, torch.arange(0, 32, 32, device=x.device)],
        lambda x: (x.unsqueeze(-1) * x.unsqueeze(1)).sum(1),
        lambda x: x.unflatten(-1, (4, 8)).transpose(1, 2).flatten(1),
        lambda x: x + x.argmax(-1, keepdim=True) * x.tanh(),
        lambda x: torch.rsqrt(x.square() + 1).pow(3).neg(),
        lambda x: (
            x.unflatten(-1, (4, 8)).repeat_interleave(2, 1).flatten(1)[:, 8:40] + x.repeat_interleave(3, -1)[:, ::3]
        ),
    ],
)
def test_plain_operators_give_what_torch_gives(function: Callable[[Tensor], Tensor]) -> None:
    module, other = _bert(), empty_module_of(_ONE_LAYER, "text-classification", 3)
    module.dropout = other.dropout = _Instead(function)
    check_graph(simplified(draft_of(module, _FORM, 997)).graph, other, _FORM)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, w: functional.linear(x, w.t()), "linear with a weight that isn't a parameter .* made by permute"),
        (lambda x, w: functional.linear(x, w[:, :32].tanh()), "linear with a weight .* made by tanh"),
        (lambda x, w: x + functional.embedding(x.argmax(-1), w[1:]), "embedding with a table .* made by slice"),
    ],
)
def test_a_weight_that_is_no_parameter_as_it_is_stored_is_refused(
    function: Callable[[Tensor, Tensor], Tensor], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(*_: object) -> Any:
        module = _bert()
        module.dropout = _Instead(lambda x: function(x, module.bert.pooler.dense.weight))
        return module

    monkeypatch.setattr(export, "empty_module_of", changed)
    with pytest.raises(NotExportableError, match=reason):
        export_graph(_ONE_LAYER, "text-classification")


@pytest.mark.slow
def test_a_graph_of_another_module_is_refused() -> None:
    graph = export_graph(config_of("Bert", ALL_ENCODERS["Bert"]), "text-classification")
    other = empty_module_of(config_of("Bert", {**ALL_ENCODERS["Bert"], "hidden_act": "relu"}), "text-classification", 3)
    with pytest.raises(NotExportableError, match="a graph that differs from its module by"):
        check_graph(graph, other, _FORM)


@pytest.mark.slow
def test_a_language_model_that_mixes_positions_is_refused() -> None:
    """Its graph is right for whole texts, but not for one that goes on."""
    config = config_of("Llama", ALL_DECODERS["Llama"])
    form = CallForm.of("language-modeling")
    module, other = (empty_module_of(config, form.kind, 0) for _ in range(2))
    for each in (module, other):
        each.model.norm = _Instead(lambda x: x.cumsum(1))
    graph = simplified(draft_of(module, form, 997)).graph
    with pytest.raises(NotExportableError, match="differs from itself in two pieces"):
        check_graph(graph, other, form)


def test_made_up_values_leave_ties_tied_and_no_two_matrices_equal() -> None:
    module = empty_module_of(
        config_of("Qwen2", {**ALL_DECODERS["Qwen2"], "tie_word_embeddings": True}), "language-modeling", 0
    )
    give_values(module)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    layers = module.model.layers
    assert not torch.equal(layers[0].self_attn.q_proj.weight, layers[1].self_attn.q_proj.weight)
    assert not any(each.is_meta for each in parameters(module).values())


@pytest.mark.slow
def test_the_number_of_classes_is_no_part_of_a_graph() -> None:
    graph = export_graph(config_of("Llama", ALL_DECODERS["Llama"]), "text-classification")
    for classes in (1, 2, 7):
        module = empty_module_of(config_of("Llama", ALL_DECODERS["Llama"]), "text-classification", classes)
        give_values(module)
        values = {name: np.asarray(tensor.detach()) for name, tensor in parameters(module).items()}
        ids = np.array([[3, 4, 5], [6, 0, 0]])
        found = run(graph, values, {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})["logits"]
        assert found.shape == (2, classes)


def test_other_threads_are_told_of_no_trace() -> None:
    with in_this_thread_alone(), ThreadPoolExecutor(1) as others, _compiling_state_context():
        assert torch.compiler.is_compiling()
        assert not others.submit(torch.compiler.is_compiling).result()
    assert not torch.compiler.is_compiling()

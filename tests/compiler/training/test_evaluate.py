"""The metric."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from weightpager.answers.kinds import IGNORED
from weightpager.answers.score import Score
from weightpager.bundle.format.manifest import TaskKind
from weightpager.compiler.data import Batch
from weightpager.compiler.training.evaluate import Replaced, evaluate
from weightpager.compiler.training.loss import loss


class Lookup(nn.Module):
    """Logits are a table's rows, by token id; the first token's for a whole text."""

    def __init__(self, table: Tensor, whole_text: bool) -> None:
        super().__init__()
        self.table, self.whole_text = table, whole_text
        self.frozen = nn.Dropout()
        self.frozen.eval()
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        self.modes.append((self.training, torch.is_grad_enabled()))
        logits = self.table[input_ids]
        return SimpleNamespace(logits=logits[:, 0] if self.whole_text else logits)


class Scored(nn.Module):
    """Logits are a layer's, of the first token's id."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layer(input_ids[:, :1].float()))


def batch(ids: list[list[int]], labels: list[int] | list[list[int]]) -> Batch:
    return Batch({"input_ids": torch.tensor(ids)}, torch.tensor(labels))


def test_accuracy() -> None:
    model = Lookup(torch.eye(3), whole_text=True)
    batches = [batch([[0, 2], [1, 2]], [0, 1]), batch([[2, 0], [2, 0], [0, 0]], [2, 1, 1])]
    assert evaluate(model, batches, "text-classification") == Score("accuracy", 0.6, 5)


def test_token_accuracy_leaves_out_ignored_labels() -> None:
    model = Lookup(torch.eye(3), whole_text=False)
    batches = [batch([[0, 1, 2], [2, 2, 0]], [[IGNORED, 1, 0], [2, IGNORED, IGNORED]])]
    assert evaluate(model, batches, "token-classification") == Score("token accuracy", 2 / 3, 3)


@given(st.integers(2, 40), st.integers(2, 9))
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(words: int, length: int) -> None:
    model = Lookup(torch.zeros(words, words), whole_text=False)
    ids = [[n % words for n in range(length)]] * 3
    score = evaluate(model, [batch(ids, ids)], "language-modeling")
    assert score.value == pytest.approx(words, rel=1e-5)
    assert score.items == 3 * (length - 1)


def test_a_language_model_predicts_the_next_token() -> None:
    following = torch.full((3, 3), -30.0)
    following[0, 1] = following[1, 2] = following[2, 0] = 30.0
    ids = [[0, 1, 2, 0, 1]]
    score = evaluate(Lookup(following, whole_text=False), [batch(ids, ids)], "language-modeling")
    assert score.value == pytest.approx(1.0)


def test_a_hopeless_language_model_has_infinite_perplexity() -> None:
    table = torch.zeros(2, 2)
    table[:, 0] = 1000.0
    assert evaluate(Lookup(table, whole_text=False), [batch([[1, 1]], [[1, 1]])], "language-modeling").value == math.inf


def test_perplexity_is_that_of_the_loss() -> None:
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    ids = [[0, 1, 2, 3], [4, 0, 2, 1]]
    model = Lookup(table, whole_text=False)
    expected = loss(model(torch.tensor(ids)).logits, torch.tensor(ids), "language-modeling").exp().item()
    assert evaluate(model, [batch(ids, ids)], "language-modeling").value == pytest.approx(expected)


def test_the_score_does_not_depend_on_batches() -> None:
    table = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    ids = [[n % 7, (n * n) % 7, (n + 3) % 7] for n in range(10)]
    kinds: list[TaskKind] = ["token-classification", "language-modeling"]
    for kind in kinds:
        whole = evaluate(Lookup(table, False), [batch(ids, ids)], kind)
        parts = evaluate(Lookup(table, False), [batch(ids[:3], ids[:3]), batch(ids[3:], ids[3:])], kind)
        assert whole.value == pytest.approx(parts.value)
        assert whole.items == parts.items


def test_modes_and_progress() -> None:
    model = Lookup(torch.eye(2), whole_text=True)
    seen: list[tuple[int, int]] = []
    evaluate(model, [batch([[0]], [0])] * 2, "text-classification", lambda done, total: seen.append((done, total)))
    assert model.modes == [(False, False)] * 2
    assert model.training
    assert not model.frozen.training
    assert seen == [(1, 2), (2, 2)]


def test_a_module_is_scored_with_other_values() -> None:
    layer = nn.Linear(1, 2, bias=False)
    wrong, right = torch.tensor([[1.0], [-1.0]]), torch.tensor([[-1.0], [1.0]])
    layer.weight.data = wrong
    model = Replaced(Scored(layer), {"layer.weight": right})
    batches = [batch([[-1], [1]], [0, 1])]
    assert evaluate(model, batches, "text-classification").value == 1.0
    assert evaluate(model.module, batches, "text-classification").value == 0.0
    with model.as_module() as own:
        assert own is model.module
        assert torch.equal(layer.weight, right)
        assert evaluate(own, batches, "text-classification").value == 1.0
    assert torch.equal(layer.weight, wrong)


def test_nothing_to_evaluate() -> None:
    model = Lookup(torch.eye(2), whole_text=False)
    for batches in ([], [batch([[0, 1]], [[IGNORED, IGNORED]])]):
        with pytest.raises(ValueError, match="at least one label"):
            evaluate(model, batches, "token-classification")


def test_which_way_is_better() -> None:
    assert Score("accuracy", 0.5, 1).higher_is_better
    assert Score("token accuracy", 0.5, 1).higher_is_better
    assert not Score("perplexity", 5.0, 1).higher_is_better


def test_the_loss_without_labels_is_zero() -> None:
    assert loss(torch.zeros(1, 2, 3), torch.full((1, 2), IGNORED), "token-classification").item() == 0

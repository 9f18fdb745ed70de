"""What training makes smaller: heads that compute where labels count give the loss and the gradients of whole ones."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import families
from weightpager.answers.kinds import IGNORED
from weightpager.bundle.format.manifest import TaskKind
from weightpager.compiler.data import Batch
from weightpager.compiler.training.loss import aligned, counted_positions, logits_with, loss

KINDS: list[TaskKind] = ["text-generation", "language-modeling"]


@pytest.fixture(autouse=True)
def _exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """No rounding to bfloat16, which would hide small differences."""
    monkeypatch.setattr("weightpager.compiler.training.loss.autocast", lambda device: nullcontext())


def batch() -> Batch:
    """Two texts, of which parts count; the second one is padded."""
    ids = torch.randint(4, 16, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.clone()
    labels[0, :5] = labels[1, :2] = labels[1, 6:] = IGNORED
    return Batch({"input_ids": ids, "attention_mask": mask}, labels)


def gradients(model: PreTrainedModel, error: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    error.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("family", families.ALL_DECODERS)
def test_a_head_where_labels_count_gives_the_whole_ones_loss_and_gradients(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(families.config_of(family, families.ALL_DECODERS[family])).eval()
    given = batch()
    whole = model(**given.inputs).logits
    wanted = torch.nn.functional.cross_entropy(whole[:, :-1].flatten(0, 1), given.labels[:, 1:].flatten())
    logits = logits_with(model, {}, given, "text-generation")
    assert logits.shape == (8, 16)  # four labels each
    error = loss(logits, given.labels, "text-generation")
    torch.testing.assert_close(error, wanted)
    ours, theirs = gradients(model, error), gradients(model, wanted)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_logits_give_the_same(kind: TaskKind) -> None:
    given, logits = batch(), torch.randn(2, 9, 16)
    places = counted_positions(given.labels, kind)
    assert places is not None
    assert torch.equal(loss(logits, given.labels, kind), loss(logits[places], given.labels, kind))


def test_classes_need_all_logits() -> None:
    assert counted_positions(torch.tensor([0, 1]), "text-classification") is None
    assert counted_positions(torch.tensor([[0, IGNORED]]), "token-classification") is None


@pytest.mark.parametrize("kind", [*KINDS, "token-classification"])
def test_what_is_taught_is_labels_and_divergence(kind: TaskKind) -> None:
    labels, logits, answers = batch().labels, torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    ours, wanted = aligned(logits, labels, kind)
    theirs, _ = aligned(answers, labels, kind)
    counts = wanted != IGNORED
    soft = torch.nn.functional.kl_div(ours[counts].log_softmax(-1), theirs[counts].softmax(-1), reduction="batchmean")
    expected = 0.7 * loss(logits, labels, kind) + 0.3 * soft
    torch.testing.assert_close(loss(logits, labels, kind, answers, 0.3), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_counts_is_no_loss(kind: TaskKind) -> None:
    labels = torch.full((2, 9), IGNORED)
    assert loss(torch.zeros(0, 16), labels, kind).item() == 0
    assert loss(torch.zeros(0, 16), labels, kind, torch.zeros(0, 16), 0.5).item() == 0


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_gradient_is_autograds(weight: float) -> None:
    labels = torch.randint(0, 7, (150,), generator=torch.Generator().manual_seed(0))  # more rows than are read at once
    labels[::5] = IGNORED
    logits, answers = torch.randn(150, 7, requires_grad=True), torch.randn(150, 7)
    counts = labels != IGNORED
    log_ours = logits[counts].log_softmax(-1)
    hard = torch.nn.functional.nll_loss(log_ours, labels[counts])
    soft = torch.nn.functional.kl_div(log_ours, answers[counts].softmax(-1), reduction="batchmean")
    wanted = (1 - weight) * hard + weight * soft
    found = loss(logits, labels, "text-classification", answers, weight)
    torch.testing.assert_close(found, wanted)
    (ours,), (theirs,) = torch.autograd.grad(3 * found, logits), torch.autograd.grad(3 * wanted, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)

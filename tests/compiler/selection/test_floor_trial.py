"""Whether floors are raised is decided by what the dense model loses."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from weightpager.compiler.alignment.problem import floors
from weightpager.compiler.prepare import prepare
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.selection import block_choice as trial
from weightpager.compiler.selection.block_choice import HIGH, choose_blocks, choose_evenness
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import from_dict
from weightpager.compiler.training.device import autocast
from weightpager.compiler.training.loss import loss
from weightpager.compiler.training.masks import Masks


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(from_dict(tiny.writer(tmp_path, sparsity=0.5, reorder=False)))


def doubtful(prepared: Prepared) -> Prepared:
    """The same, its first weight of no saliency at all."""
    first = prepared.source.paged[0].name
    saliency = {task: {**of, first: np.zeros_like(of[first])} for task, of in prepared.saliency.items()}
    return replace(prepared, saliency=saliency)


@pytest.mark.parametrize(
    ("dense", "low", "high", "chosen"),
    [
        pytest.param(3.0, 7.0, 5.0, HIGH, id="less"),
        pytest.param(3.0, 7.0, 6.7, 0.0, id="hardly less"),
        pytest.param(3.0, 5.0, 7.0, 0.0, id="more"),
        pytest.param(3.0, 3.2, 2.9, HIGH, id="nothing at all"),
        pytest.param(3.0, 2.9, 2.8, 0.0, id="nothing to win"),
    ],
)
def test_high_floors_have_to_pay(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, dense: float, low: float, high: float, chosen: float
) -> None:
    first = prepared.source.paged[0]
    told: list[tuple[str, int, int]] = []

    def loss_of(_of: Prepared, masks: Masks | None, _batches: object) -> float:
        if masks is None:
            assert high < low, "the dense loss decides nothing"
            return dense
        return high if masks.keep[first.name].mean() > 0.2 else low

    monkeypatch.setattr(trial, "_loss", loss_of)
    assert choose_evenness(doubtful(prepared), lambda *args: told.append(args)) == chosen
    assert told == [("choose floors", done, 3) for done in (1, 2, 3)]


def test_the_loss_is_that_of_the_masked_model(prepared: Prepared) -> None:
    task, first = next(iter(prepared.source.models)), prepared.source.paged[0]
    kept = {info.name: np.ones((info.grid.count, len(prepared.source.models)), bool) for info in prepared.source.paged}
    kept[first.name][:] = False
    batches = prepared.data[task].calibration(4, 4)
    model, kind = copy.deepcopy(prepared.source.models[task]), prepared.data[task].kind
    with torch.no_grad(), autocast(model.device):
        model.get_submodule(first.name.removesuffix(".weight")).weight.zero_()
        wanted = [loss(model(**batch.inputs).logits, batch.labels, kind) for batch in batches]
    found = trial._loss(prepared, Masks(tuple(prepared.source.models), kept), {task: batches})
    assert found == pytest.approx(float(torch.stack(wanted).mean()), rel=1e-5)


def test_without_masks_it_is_the_dense_one(prepared: Prepared) -> None:
    batches = {name: of.calibration(4, 4) for name, of in prepared.data.items()}
    kept = {info.name: np.ones((info.grid.count, len(batches)), bool) for info in prepared.source.paged}
    everything = trial._loss(prepared, Masks(tuple(batches), kept), batches)
    assert trial._loss(prepared, None, batches) == pytest.approx(everything, rel=1e-5)


def test_masks_keep_what_the_level_asks_for(prepared: Prepared) -> None:
    starved = doubtful(prepared)
    sizes = [info.grid.count for info in starved.source.paged]
    for evenness in (0.0, HIGH):
        masks = choose_blocks(replace(starved, evenness=evenness)).masks
        kept = np.stack([masks.keep[info.name].sum(0) for info in starved.source.paged])
        assert (kept >= floors(sizes, kept.sum(0), evenness)).all()
    assert masks.keep[starved.source.paged[0].name].mean() == pytest.approx(0.25, abs=0.1)


def test_a_journal_keeps_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task_file = from_dict(tiny.writer(tmp_path, sparsity=0.5))
    journal = Journal(tmp_path / "journal", "one")
    first = prepare(task_file, CompileRun(journal=journal))
    monkeypatch.setattr(trial, "_loss", lambda *_: pytest.fail("tried again"))
    assert prepare(task_file, CompileRun(journal=Journal(tmp_path / "journal", "one"))).evenness == first.evenness


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "tensors"), [("floors", {}), ("calibrate", {}), ("calibrate", {"saliency/a/b": [1.0]})]
)
def test_a_journal_that_lacks_something_is_ignored(tmp_path: Path, stage: str, tensors: dict[str, list[float]]) -> None:
    task_file = from_dict(tiny.writer(tmp_path, sparsity=0.5))
    journal = Journal(tmp_path / "journal", "one")
    first = prepare(task_file, CompileRun(journal=journal))
    journal.write(stage, 0, {name: torch.tensor(values) for name, values in tensors.items()})
    again = prepare(task_file, CompileRun(journal=Journal(tmp_path / "journal", "one")))
    assert again.evenness == first.evenness
    assert again.saliency.keys() == first.saliency.keys()

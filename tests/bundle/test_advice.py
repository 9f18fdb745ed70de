"""Advice in words: what to use at which memory."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from weightpager.bundle import Bundle
from weightpager.bundle.advice import advise
from weightpager.bundle.report import CompileReport, ControlScore, TaskScore, read_report


def report(bundle: Bundle, sparse: float, controls: dict[str, tuple[int, float]]) -> CompileReport:
    return read_report(bundle).model_copy(
        update={
            "tasks": [
                TaskScore(name=name, metric="accuracy", dense=0.9, sparse=sparse, density=0.4, items=10)
                for name in bundle.tasks
            ],
            "controls": [
                ControlScore(name=name, resident_bytes=size, scores=dict.fromkeys(bundle.tasks, score))
                for name, (size, score) in controls.items()
            ],
        }
    )


def arena(bundle: Bundle) -> int:
    return max(len(bundle.pages_of(task)) for task in bundle.tasks) * bundle.page_bytes


def test_a_shared_mask_that_does_as_well_is_advised(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    found = advise(bundle, report(bundle, 0.85, {"shared mask": (arena(bundle), 0.86)}))
    assert found is not None
    assert "use one shared mask: it loses 4.0 points and loads nothing" in found.words
    assert "'alignment: inf' compiles that. Paging pays with less memory" in found.words
    assert {choice.name for choice in found.choices} == {"this bundle", "shared mask"}


def test_paging_is_advised_where_nothing_simpler_is_as_good(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    controls = {"shared mask": (arena(bundle), 0.80), "int8": (10 * arena(bundle), 0.9)}
    found = advise(bundle, report(bundle, 0.85, controls))
    assert found is not None
    assert "use this bundle: it loses 5.0 points against dense; one shared mask, the next best, 10.0." in found.words
    assert "int8 would be better: it loses 0.0." in found.words
    assert [choice.name for choice in found.choices][-1] == "int8"


def test_a_budget_that_is_too_small_or_large_enough_for_more(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    facts = report(bundle, 0.85, {"int8": (10 * arena(bundle), 0.9)})
    small, large = advise(bundle, facts, arena(bundle) - 1), advise(bundle, facts, 10 * arena(bundle))
    assert small is not None
    assert "Nothing that was measured fits" in small.words
    assert large is not None
    assert "use int8" in large.words


def test_what_is_better_than_dense_does_not_lose_less_than_nothing(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    control = advise(bundle, report(bundle, 0.902, {"int8": (arena(bundle), 0.91)}))
    assert control is not None
    assert "use int8: it beats dense by 1.0 points and loads nothing" in control.words
    assert "this bundle beats dense by 0.2." in control.words
    ours = advise(bundle, report(bundle, 0.91, {"int8": (arena(bundle), 0.905), "int4": (10 * arena(bundle), 0.92)}))
    assert ours is not None
    assert "it beats dense by 1.0 points; int8, the next best, beats dense by 0.5." in ours.words
    assert "int4 would be better: it beats dense by 2.0." in ours.words
    equal = advise(bundle, report(bundle, 0.90001, {"int8": (arena(bundle), 0.8)}))
    assert equal is not None
    assert "it loses 0.0 points against dense" in equal.words


@pytest.mark.parametrize("perplexity", [math.inf, math.nan])
def test_a_report_of_a_hopeless_model_can_be_read(assistant_bundle: Path, perplexity: float) -> None:
    whole = read_report(Bundle.open(assistant_bundle))
    scores = [score.model_copy(update={"metric": "perplexity", "sparse": perplexity}) for score in whole.tasks]
    found = CompileReport.model_validate_json(whole.model_copy(update={"tasks": scores}).dump())
    assert all(score.sparse == pytest.approx(perplexity, nan_ok=True) for score in found.tasks)


@pytest.mark.parametrize("accuracy", [math.inf, math.nan])
def test_scores_that_are_no_numbers_are_never_advised(assistant_bundle: Path, accuracy: float) -> None:
    bundle = Bundle.open(assistant_bundle)
    whole = report(bundle, 0.85, {"int8": (arena(bundle), 0.8)})
    broken = [task.model_copy(update={"dense": accuracy}) for task in whole.tasks]
    assert advise(bundle, whole.model_copy(update={"tasks": broken})) is None
    found = advise(bundle, report(bundle, math.nan, {"int8": (arena(bundle), 0.8)}))
    assert found is not None
    assert "use int8: it loses 10.0 points" in found.words
    assert "nan" not in found.words


def test_nothing_measured_is_no_advice(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    assert advise(bundle, report(bundle, 0.85, {})) is None


def test_a_compile_measures_its_controls(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    controls = {control.name: control for control in read_report(bundle).controls}
    assert list(controls) == ["int8", "int4", "shared mask"]
    assert controls["int4"].resident_bytes < controls["int8"].resident_bytes < bundle.dense_bytes
    assert controls["shared mask"].resident_bytes == pytest.approx(0.4 * bundle.dense_bytes, rel=0.05)
    assert all(control.scores.keys() == bundle.tasks.keys() for control in controls.values())

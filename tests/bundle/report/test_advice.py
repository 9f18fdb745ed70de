"""Advice in words: what to use at which memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import weightpager as wp
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import budget_of_shared
from weightpager.bundle.report import advice
from weightpager.bundle.report.advice import advise, few_items, heavy_losses
from weightpager.bundle.report.compile_report import CompileReport, ControlScore, Fit, TaskScore, read_report
from weightpager.config import format_enough
from weightpager.page_dtype import PageDtype
from weightpager.runtime.budget import needs_of, smallest_budget
from weightpager.transitions import Transitions


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


def room(bundle: Bundle, paged_bytes: int, dtype: PageDtype = "int8") -> int:
    """A budget for so many bytes of blocks that all tasks have, in which the bundle itself doesn't stay whole."""
    return budget_of_shared(bundle, paged_bytes, dtype)


def stated(budget: int) -> str:
    return f"`--budget {format_enough(budget).replace(' ', '')}`"


def words_of(bundle: Bundle, facts: CompileReport, budget: int | None = None) -> str:
    found = advise(bundle, facts, budget)
    assert found is not None
    return found.words


def test_a_shared_mask_that_does_as_well_is_advised(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    facts, budget = (
        report(bundle, 0.85, {"shared mask": (arena(bundle), 0.86)}),
        room(bundle, arena(bundle), "bfloat16"),
    )
    words = words_of(bundle, facts, budget)
    assert f"take one shared mask: `alignment: inf`, needs {stated(budget)}, loads nothing at a switch" in words
    assert "; it loses 4.0 points" in words
    assert "this bundle loses 5.0. Paging pays with less memory" in words


def test_paging_is_advised_where_nothing_simpler_is_as_good(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    controls = {"shared mask": (arena(bundle) // 2, 0.80), "int8": (3 * arena(bundle), 0.9)}
    found = advise(bundle, report(bundle, 0.85, controls))
    assert found is not None
    least = smallest_budget(bundle)
    assert found.words.startswith(f"With {stated(least)} take this bundle: needs {stated(least)}, loads ")
    assert "at a switch; it loses 5.0 points; one shared mask loses 10.0." in found.words
    needs = stated(room(bundle, 3 * arena(bundle)))
    better = f"Better, in more memory: all blocks in int8: `sparsity: 0`, `dtype: int8`, needs {needs}, loads nothing"
    assert better in found.words
    assert [choice.name for choice in found.choices] == ["shared mask", "this bundle", "int8"]


def test_a_budget_that_is_too_small_or_large_enough_for_more(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    facts = report(bundle, 0.85, {"int8": (10 * arena(bundle), 0.9)})
    least = smallest_budget(bundle)
    small = words_of(bundle, facts, least - 1)
    assert "Nothing that was measured fits" in small
    assert f"this bundle: needs {stated(least)}" in small
    large = room(bundle, 10 * arena(bundle))
    assert "take all blocks in int8" in words_of(bundle, facts, large)
    assert "take this bundle" in words_of(bundle, facts, large - 1)


def test_what_weightpager_cannot_compile_is_shown_and_not_advised(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    found = advise(bundle, report(bundle, 0.85, {"int2": (arena(bundle), 0.9)}), 100 * arena(bundle))
    assert found is not None
    assert "int2" not in found.words
    assert {choice.name: choice.budget is None for choice in found.choices} == {"int2": True, "this bundle": False}


def test_a_bundle_whose_pages_all_stay_loads_nothing_either(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    every = needs_of(bundle).holding(len(bundle.pages)).total
    facts = report(bundle, 0.9, {"int8": (arena(bundle) // 2, 0.9)})
    for budget, loads in ((every, False), (every - 1, True)):
        found = advise(bundle, facts, budget)
        assert found is not None
        ours = next(choice for choice in found.choices if choice.name == "this bundle")
        assert ours.budget == (smallest_budget(bundle) if loads else every)
        assert (ours.switch_bytes > 0) is loads


def test_the_budget_of_a_bundle_of_all_blocks_is_that_of_one_that_is_compiled(
    wordy_bundle: Path, tmp_path: Path
) -> None:
    bundle, dtype = Bundle.open(wordy_bundle), "int4"
    task_file = tiny.wordy(tmp_path, sparsity=0.0, dtype=dtype, compare="none", page=bundle.page_bytes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightpager.compiler.packing.rows.LEAST_BYTES", 4096)
        whole = wp.compile(task_file, out=tmp_path / "whole.bundle")
    said, needed = budget_of_shared(bundle, whole.dense_bytes, dtype), smallest_budget(whole)
    assert needed <= said <= needed + 2 * whole.manifest.layers * whole.page_bytes


def test_what_is_better_than_dense_does_not_lose_less_than_nothing(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    budget = room(bundle, arena(bundle))
    control = words_of(bundle, report(bundle, 0.902, {"int8": (arena(bundle), 0.91)}), budget)
    assert "loads nothing at a switch; it beats dense by 1.0 points; this bundle beats dense by 0.2." in control
    facts = report(bundle, 0.91, {"int8": (arena(bundle), 0.905), "int4": (10 * arena(bundle), 0.92)})
    ours = words_of(bundle, facts, budget)
    assert "it beats dense by 1.0 points; all blocks in int8 beats dense by 0.5." in ours
    assert (
        ours.split("Better, in more memory: all blocks in int4")[1].split(";")[1].startswith(" it beats dense by 2.0.")
    )
    equal = words_of(bundle, report(bundle, 0.90001, {"int8": (arena(bundle), 0.8)}))
    assert "it loses 0.0 points" in equal


@pytest.mark.parametrize("perplexity", [math.inf, math.nan])
def test_a_report_of_a_hopeless_model_can_be_read(assistant_bundle: Path, perplexity: float) -> None:
    whole = read_report(Bundle.open(assistant_bundle))
    scores = [score.model_copy(update={"metric": "perplexity", "sparse": perplexity}) for score in whole.tasks]
    found = CompileReport.model_validate_json(whole.model_copy(update={"tasks": scores}).dump())
    assert all(score.sparse == pytest.approx(perplexity, nan_ok=True) for score in found.tasks)


@pytest.mark.parametrize("whose", ["dense", "control"])
def test_a_perplexity_that_cant_be_divided_by_is_refused(assistant_bundle: Path, whose: str) -> None:
    whole = read_report(Bundle.open(assistant_bundle))
    dense = 0.0 if whose == "dense" else 2.0
    tasks = [score.model_copy(update={"metric": "perplexity", "dense": dense}) for score in whole.tasks]
    trained = ControlScore(name="dense", resident_bytes=1, scores=dict.fromkeys((task.name for task in tasks), 0.0))
    controls = [trained] if whose == "control" else []
    broken = whole.model_copy(update={"tasks": tasks, "controls": controls})
    with pytest.raises(ValueError, match="a perplexity above 0"):
        CompileReport.model_validate_json(broken.dump())


@pytest.mark.parametrize("accuracy", [math.inf, math.nan])
def test_scores_that_are_no_numbers_are_never_advised(assistant_bundle: Path, accuracy: float) -> None:
    bundle = Bundle.open(assistant_bundle)
    whole = report(bundle, 0.85, {"int8": (arena(bundle), 0.8)})
    broken = [task.model_copy(update={"dense": accuracy}) for task in whole.tasks]
    assert advise(bundle, whole.model_copy(update={"tasks": broken})) is None
    found = words_of(bundle, report(bundle, math.nan, {"int8": (arena(bundle), 0.8)}), room(bundle, arena(bundle)))
    assert "take all blocks in int8" in found
    assert "it loses 10.0 points" in found
    assert "nan" not in found


def test_nothing_measured_is_no_advice(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    assert advise(bundle, report(bundle, 0.85, {})) is None


def test_a_compile_measures_its_controls(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    controls = {control.name: control for control in read_report(bundle).controls}
    assert list(controls) == ["int8", "int4", "int3", "int2", "shared mask"]
    assert controls["int4"].resident_bytes < controls["int8"].resident_bytes < bundle.dense_bytes
    assert controls["shared mask"].resident_bytes == pytest.approx(0.4 * bundle.dense_bytes, rel=0.05)
    assert all(control.scores.keys() == bundle.tasks.keys() for control in controls.values())


def measured(
    bundle: Bundle,
    sparse: float,
    controls: dict[str, tuple[int, float]],
    reach: float = 1.0,
    items: int = 400,
    **changes: Any,
) -> CompileReport:
    """As `report`, with intervals that reach so many points to both sides."""

    def around(points: float) -> tuple[float, float]:
        return (points - reach, points + reach)

    plain = report(bundle, sparse, controls)
    dense = dict(controls).get("dense", (0, 0.9))[1]
    # The mean over the tasks is surer by the root of their number.
    reach *= len(bundle.tasks) ** 0.5
    tasks = [
        task.model_copy(update={"items": items, "texts": items, "loss_interval": around(100 * (0.9 - sparse))})
        for task in plain.tasks
    ]
    found = [
        control.model_copy(
            update={
                "loss_intervals": {task: around(100 * (dense - score)) for task, score in control.scores.items()},
                "gap_intervals": {task: around(100 * (sparse - score)) for task, score in control.scores.items()},
            }
        )
        for control in plain.controls
    ]
    return plain.model_copy(update={"tasks": tasks, "controls": found, **changes})


def test_where_chance_hides_the_difference_the_cheaper_to_run_is_advised(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    budget = room(bundle, arena(bundle))
    for int8 in (0.905, 0.895):  # half a point better, or worse, where a point and less is chance
        words = words_of(bundle, measured(bundle, 0.90, {"int8": (arena(bundle), int8)}), budget)
        assert "take all blocks in int8" in words
        assert "They can't be told apart by 1,600 held-out items; about 6,400 would" in words
        assert "The first is the cheaper to run" in words
        assert "this bundle does as well as dense, as far as the data tells (1.0 points better to 1.0 worse)" in (
            words.replace("(1.0 better", "(1.0 points better")
        )
        assert "beats dense" not in words
    every = needs_of(bundle).holding(len(bundle.pages)).total
    many = measured(bundle, 0.90, {"int8": (10 * arena(bundle), 0.905)})
    stays = words_of(bundle, many, max(every, room(bundle, 10 * arena(bundle))))
    assert f"take this bundle: needs {stated(every)}, loads nothing at a switch" in stays
    assert "The first is the cheaper to run" in stays
    sure = words_of(bundle, measured(bundle, 0.90, {"int8": (arena(bundle), 0.905)}, reach=0.4), budget)
    assert "it beats dense by 0.5 points (0.1 to 0.9)" in sure
    assert "told apart" not in sure


def test_of_two_that_are_better_and_alike_the_cheaper_is_advised(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    controls = {"int8": (2 * arena(bundle), 0.962), "int4": (arena(bundle), 0.96)}
    words = words_of(bundle, measured(bundle, 0.90, controls), 10 * room(bundle, 2 * arena(bundle)))
    assert "take all blocks in int4" in words
    assert "told apart" not in words


def test_with_as_good_as_no_difference_no_number_of_items_is_named(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    facts = measured(bundle, 0.9, {"int8": (arena(bundle), 0.90001)})
    words = words_of(bundle, facts, room(bundle, arena(bundle)))
    assert "can't be told apart" in words
    assert "would, if" not in words


def test_the_bundle_is_held_against_a_dense_model_that_was_trained_as_long(assistant_bundle: Path) -> None:
    """Five points above the dense model that recovery set out from, three below the one of as many steps."""
    bundle = Bundle.open(assistant_bundle)
    controls = {"dense": (3 * arena(bundle), 0.98), "int8": (2 * arena(bundle), 0.97)}
    found = advise(bundle, measured(bundle, 0.95, controls, recover="finetune"))
    assert found is not None
    assert "take this bundle" in found.words
    assert "it loses 3.0 points (2.0 to 4.0)" in found.words
    assert "beats" not in found.words
    losses = {choice.name: choice.loss for choice in found.choices}
    assert losses == pytest.approx({"this bundle": 3.0, "dense": 0.0, "int8": 1.0})
    alone = measured(bundle, 0.95, {"dense": (3 * arena(bundle), 0.98)})
    words = words_of(bundle, alone, room(bundle, 3 * arena(bundle), "bfloat16"))
    line = "take all blocks in bfloat16: `sparsity: 0` and as many more steps of `training`, needs "
    assert line in words
    assert "loads nothing at a switch; it loses nothing; this bundle loses 3.0" in words


@pytest.mark.parametrize("fits", [True, False])
def test_more_sparsity_is_not_advised_where_sparsity_has_lost(assistant_bundle: Path, *, fits: bool) -> None:
    bundle = Bundle.open(assistant_bundle)
    budget = room(bundle, arena(bundle)) if fits else smallest_budget(bundle) // 2
    for facts, wanted in (
        (measured(bundle, 0.85, {"int8": (arena(bundle), 0.9)}), False),
        (report(bundle, 0.85, {"int8": (arena(bundle), 0.9)}), False),
        (measured(bundle, 0.895, {"int8": (arena(bundle), 0.95)}), True),
    ):
        assert ("compile with more sparsity" in words_of(bundle, facts, budget)) is wanted


def test_where_closed_form_loses_what_loses_less_is_named(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)

    def words(sparse: float, recover: str) -> str:
        facts = measured(bundle, sparse, {"int8": (3 * arena(bundle), 0.9)}, recover=recover)
        return getattr(advise(bundle, facts), "words", "")

    ways = "'recover: finetune', or less sparsity, or 'dtype: int4', in which as many bytes hold 3.2 times the blocks."
    assert f"closed form loses more than chance explains: take {ways}" in words(0.864, "closed-form")
    assert "fine-tuning loses more than chance explains: take less sparsity" in words(0.864, "finetune")
    assert "more than chance" not in words(0.895, "closed-form")


def test_few_held_out_items_are_named(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    found = advise(bundle, measured(bundle, 0.85, {"int8": (arena(bundle), 0.9)}, items=15))
    assert found is not None
    assert "Few held-out texts or images (animal 15, weather 15, number 15, colour 15)" in found.words
    assert few_items(measured(bundle, 0.85, {})) == ""


def lost(facts: CompileReport, task: str, interval: tuple[float, float], **changes: Any) -> CompileReport:
    """A report in which one task has lost as much."""
    tasks = [
        of.model_copy(update={"loss_interval": interval, **changes} if of.name == task else {}) for of in facts.tasks
    ]
    return facts.model_copy(update={"tasks": tasks})


def test_a_task_that_has_lost_much_is_named_and_not_laid_to_chance(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    ruined = lost(measured(bundle, 0.85, {}, items=15, recover="none"), "animal", (56.4, 100.0))
    words = "animal loses at least 56 points: lower 'sparsity', or train with 'recover: finetune'."
    assert heavy_losses(ruined) == words
    assert "animal" not in few_items(ruined)
    assert "weather 15" in few_items(ruined)
    assert heavy_losses(lost(measured(bundle, 0.85, {}), "animal", (4.9, 100.0))) == ""
    compared = lost(measured(bundle, 0.85, {"int8": (arena(bundle), 0.9)}, recover="none"), "animal", (56.4, 100.0))
    found = advise(bundle, compared)
    assert found is not None
    assert words in found.words
    assert "more than chance explains" not in found.words


def test_what_to_do_about_a_heavy_loss_follows_from_how_the_bundle_was_made(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    trained = lost(measured(bundle, 0.85, {}, recover="finetune"), "animal", (math.inf, math.inf), metric="perplexity")
    assert heavy_losses(trained) == "animal loses at least 1,000,000 % of perplexity: lower 'sparsity'."
    fit = Fit(budget=1, bytes=1, density=0.1, dtype="int4", why="it fits")
    assert "% of perplexity: state more for 'fit'." in heavy_losses(
        lost(trained, "animal", (6.0, 8.0)).model_copy(update={"fit": fit})
    )
    whole = fit.model_copy(update={"whole": 7 << 20})
    assert "state more for 'fit' (7.0MiB drops no block)." in heavy_losses(
        lost(trained, "animal", (6.0, 8.0)).model_copy(update={"fit": whole})
    )


def test_a_heavy_loss_is_counted_from_a_dense_model_that_was_trained_as_long(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    facts = measured(bundle, 0.85, {"dense": (3 * arena(bundle), 0.98)}, recover="finetune")
    assert "number loses at least 11 points" in heavy_losses(facts)


def test_a_hopeless_bundle_is_told_from_what_works(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    found = advise(bundle, measured(bundle, math.inf, {"int8": (arena(bundle), 0.9)}, reach=math.inf))
    assert found is not None
    assert "nan" not in found.words


def test_an_interval_whose_ends_are_turned_is_refused(assistant_bundle: Path) -> None:
    whole = read_report(Bundle.open(assistant_bundle))
    turned = whole.tasks[0].model_copy(update={"sparse_interval": (0.9, 0.1)})
    with pytest.raises(ValueError, match="the lower end first"):
        CompileReport.model_validate_json(whole.model_copy(update={"tasks": [turned, *whole.tasks[1:]]}).dump())


def test_an_average_switch_is_weighed_by_how_often_each_is_made(
    assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(assistant_bundle)
    names = list(bundle.tasks)
    loaded = np.array(
        [[len(np.setdiff1d(bundle.pages_of(after), bundle.pages_of(before))) for after in names] for before in names]
    )
    first, last = (int(each) for each in np.unravel_index(loaded.argmax(), loaded.shape))
    assert loaded[first, last] + loaded[last, first] != 2 * loaded.sum() / (len(names) * (len(names) - 1))
    monkeypatch.setattr(advice, "transitions_of", lambda _: _to_and_fro(names, first, last))
    found = advise(bundle, report(bundle, 0.85, {"int8": (10 * arena(bundle), 0.9)}))
    assert found is not None
    ours = next(choice for choice in found.choices if choice.name == "this bundle")
    assert ours.switch_bytes == round((loaded[first, last] + loaded[last, first]) / 2 * bundle.page_bytes)


def _to_and_fro(tasks: list[str], first: int, last: int) -> Transitions:
    """Switches between two tasks, to which all others lead."""
    matrix = np.zeros((len(tasks), len(tasks)))
    matrix[:, first] = 1
    matrix[first] = np.eye(len(tasks))[last]
    return Transitions(tuple(tasks), matrix)

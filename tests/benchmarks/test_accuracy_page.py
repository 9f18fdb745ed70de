"""The accuracy page says what its rows say, and nothing that they don't."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.accuracy import page as accuracy_page
from benchmarks.accuracy import rows
from benchmarks.accuracy.goals import GOALS, Goal
from benchmarks.accuracy.rows import Row, gather
from benchmarks.accuracy.settings import (
    ALL_BLOCKS,
    EFFORTS,
    HALF_WITH_LOW_RANK,
    INT4_FRACTIONS,
    WITH_LOW_RANK,
    settings,
)


def measured(
    method: str,
    fraction: float,
    values: Sequence[float],
    *,
    dense: Sequence[float] = (0.90, 0.80),
    seed: int = 0,
    recover: str = "finetune",
    domain: str = "A",
    overlap: float = 0.7,
    switch: int = 1000,
) -> list[Row]:
    """One measurement of two tasks, with their mean."""
    tasks = [("spam", dense[0], values[0]), ("topic", dense[1], values[1])]
    tasks.append(("mean", sum(dense) / 2, sum(values) / 2))
    return [
        Row(domain, fraction, 1 - fraction, method, recover, seed, task, was, value, overlap, switch, 60.0, "cmd", "c0")
        for task, was, value in tasks
    ]


def goal(words: str) -> Goal:
    (found,) = [goal for goal in GOALS if words in goal.asked]
    return found


def verdict(words: str, known: Sequence[Row], method: str = "ours") -> str:
    return goal(words).judge(gather(known), method).word


def page(known: Sequence[Row]) -> str:
    return accuracy_page.render(known, "accuracy.json", Path("docs/accuracy.md"))


def test_nothing_is_reached_without_rows() -> None:
    assert {goal.judge([], method).word for goal in GOALS for method in goal.methods} == {"not measured"}
    text = page([])
    assert text.count("| not measured |") == sum(len(goal.methods) for goal in GOALS)
    assert text.count("\nNot measured.\n") == 4
    assert "| yes |" not in text


def test_the_page_begins_with_what_int4_keeps_in_each_domain() -> None:
    ours = [*measured("ours_int4", 0.07, (0.89, 0.78)), *measured("ours_int4", 0.07, (0.87, 0.78), seed=1)]
    writing = measured("int4", 0.281, (0.9, 0.94), dense=(1.0, 1.0), recover="none", domain="D")
    short = page([*ours, *writing, *measured("ours", 0.07, (0.5, 0.5))]).split("## What was asked")[0]
    assert re.findall(r"^\| (\S.* \| 0\..*) \|$", short, re.MULTILINE) == [
        "dense in int4 | 0.281 | not measured | 0.920 (1 seed) | not measured",
        "weightpager in int4 | 0.07 | -2.00 (2 seeds) | not measured | not measured",
    ]


def test_a_seed_without_its_mean_counts_for_nothing() -> None:
    stopped = measured("ours", 0.25, (0.9, 0.8))[:1]
    assert gather(stopped) == []
    assert verdict("1.5 points of dense", stopped) == "not measured"


@pytest.mark.parametrize(
    ("values", "overlap", "word"),
    [((0.885, 0.785), 0.6, "yes"), ((0.884, 0.785), 0.6, "no"), ((0.9, 0.8), 0.59, "no")],
)
def test_near_dense_asks_for_points_and_overlap(values: tuple[float, float], overlap: float, word: str) -> None:
    assert verdict("1.5 points of dense", measured("ours", 0.25, values, overlap=overlap)) == word


def test_a_gain_must_lie_beyond_the_spread_of_the_seeds() -> None:
    words = "above one shared mask, beyond"
    shared = [*measured("shared_mask", 0.25, (0.80, 0.80)), *measured("shared_mask", 0.25, (0.82, 0.82), seed=1)]
    first = measured("ours", 0.25, (0.83, 0.83))
    assert verdict(words, [*shared, *first]) == "not measured"  # one seed in common has no spread
    assert verdict(words, [*shared, *first, *measured("ours", 0.25, (0.83, 0.83), seed=1)]) == "yes"
    assert verdict(words, [*shared, *first, *measured("ours", 0.25, (0.815, 0.815), seed=1)]) == "no"


def test_seeds_are_compared_with_the_same_seeds() -> None:
    shared = measured("shared_mask", 0.15, (0.80, 0.80), seed=1)
    ours = [*measured("ours", 0.15, (0.99, 0.99)), *measured("ours", 0.15, (0.81, 0.81), seed=1)]
    assert verdict("2 points above", [*shared, *ours]) == "no"
    assert verdict("2 points above", [*shared, *ours[:3]]) == "not measured"


def test_whole_checkpoints_are_judged_by_value_and_bytes() -> None:
    words = "whole checkpoints"
    whole = measured("per_task_checkpoint", 0.25, (0.90, 0.80), switch=2000)
    assert verdict(words, [*whole, *measured("ours", 0.25, (0.895, 0.795))]) == "yes"
    assert verdict(words, [*whole, *measured("ours", 0.25, (0.895, 0.795), switch=1001)]) == "no"
    assert verdict(words, [*whole, *measured("ours", 0.25, (0.894, 0.795))]) == "no"


def test_one_bad_task_is_not_hidden_by_the_mean() -> None:
    known = measured("ours", 0.5, (0.92, 0.784))
    assert verdict("no task more than 1.5 below", known) == "no"
    assert "topic -1.60" in page(known)


def test_methods_are_judged_apart() -> None:
    known = [*measured("ours", 0.15, (0.5, 0.5)), *measured("ours_private", 0.15, (0.9, 0.8))]
    assert [verdict("3 points of dense", known, method) for method in ("ours", "ours_private")] == ["no", "yes"]


def test_four_bits_are_judged_by_dense_in_int4_and_by_one_shared_mask() -> None:
    dense4 = measured("int4", 0.281, (0.89, 0.79), recover="none")
    for value, word in ((0.888, "yes"), (0.887, "no")):
        ours = measured("ours_int4", 0.07, (value, value - 0.1))
        assert verdict("below dense in int4", [*dense4, *ours], "ours_int4") == word
    assert verdict("below dense in int4", ours, "ours_int4") == "not measured"
    ours = measured("ours_int4", 0.07, (0.88, 0.78))
    for value, word in ((0.87, "yes"), (0.871, "no")):
        shared = measured("shared_mask_int4", 0.07, (value, value - 0.1))
        assert verdict("1.0 point above one shared mask in int4", [*ours, *shared], "ours_int4") == word
    assert verdict("0.3 points below dense", measured("ours_int4", 0.14, (0.897, 0.797)), "ours_int4") == "yes"
    assert verdict("1.5 points below dense", measured("ours_int4", 0.035, (0.88, 0.78)), "ours_int4") == "no"


def test_four_bits_are_measured_beside_as_many_bytes_of_eight() -> None:
    for fraction in set(INT4_FRACTIONS["A"]) - {ALL_BLOCKS}:
        found = {setting.method: setting for setting in settings("A", fraction, EFFORTS["A"], 0, quick=False)}
        ours, mask, eight = (found[name] for name in ("ours_int4", "shared_mask_int4", "ours_int8"))
        assert (ours.density, ours.dtype) == (mask.density, mask.dtype)
        assert ours.density * 4.5 == pytest.approx(fraction * 16)
        assert eight.density * 8.5 == pytest.approx(fraction * 16)
        assert ours.joint != mask.joint
        assert replace(ours, dtype="bfloat16").joint != ours.joint  # it isn't trained through any rounding
    assert not any(s.dtype == "int4" for s in settings("B", 0.5, EFFORTS["B"], 0, quick=False))


@pytest.mark.parametrize("domain", ["A", "D"])
def test_all_blocks_in_four_bits_are_trained_as_long_as_some(domain: str) -> None:
    (whole,) = settings(domain, ALL_BLOCKS, EFFORTS[domain], 0, quick=False)
    ours = next(s for s in settings(domain, 0.14, EFFORTS[domain], 0, quick=False) if s.method == "ours_int4")
    assert (whole.density, whole.dtype) == (1.0, ours.dtype)
    assert whole.fraction == pytest.approx(4.5 / 16, abs=1e-3)
    assert whole.recover == ours.recover


def test_low_rank_parts_count_beside_the_blocks() -> None:
    whole, half = (
        next(settings("D", fraction, EFFORTS["D"], 0, quick=False)) for fraction in (WITH_LOW_RANK, HALF_WITH_LOW_RANK)
    )
    assert (whole.method, half.method) == ("low_rank_int4", "ours_low_rank_int4")
    assert whole.recover == half.recover
    assert whole.recover.low_rank > 0
    parts = WITH_LOW_RANK - whole.density * 4.5 / 16
    assert half.fraction - half.density * 4.5 / 16 == pytest.approx(parts, abs=1e-3)


def test_perplexities_are_compared_as_ratios() -> None:
    dense = (10.0, 20.0)
    assert verdict("at most 1.15", measured("ours", 0.7, (11.5, 23.0), dense=dense, domain="B")) == "yes"
    assert verdict("at most 1.15", measured("ours", 0.7, (11.6, 23.0), dense=dense, domain="B")) == "no"
    refitted = measured("ours", 0.5, (40.0, 80.0), dense=dense, domain="B", recover="closed-form")
    for factor, word in ((2.0, "yes"), (2.01, "no")):
        tuned = measured("ours", 0.5, (10 * factor, 20 * factor), dense=dense, domain="B")
        assert verdict("log-perplexity gap", [*refitted, *tuned]) == word
    assert verdict("log-perplexity gap", tuned) == "not measured"


def test_tables_show_the_mean_over_seeds_and_its_ends() -> None:
    known = [
        *measured("ours", 0.25, (0.88, 0.78)),
        *measured("ours", 0.25, (0.90, 0.80), seed=1),
        *measured("shared_mask", 0.25, (0.86, 0.76)),
    ]
    text = page(known)
    mean = "| 0.25 | weightpager | 0.8400 (0.8300 to 0.8500) | 0.8500 | -1.00 | 2 | 0.700 |"
    assert mean in text
    assert "| 0.25 | one shared mask | 0.8100 | 0.8500 | -4.00 | 1 |" in text
    assert "| task | dense | weightpager | one shared mask (1 seed) |" in text
    assert "| spam | 0.9000 | 0.8900 | 0.8600 |" in text


def test_where_something_simpler_wins_the_page_says_so() -> None:
    known = [*measured("ours", 0.5, (0.88, 0.78)), *measured("shared_mask", 0.5, (0.89, 0.79))]
    assert (
        "a = 0.5: one shared mask at 0.5 has accuracy 0.8400 (-1.00 to dense), weightpager 0.8300 (-2.00 to dense)."
        in page(known)
    )
    assert "Where something simpler" not in page(measured("ours", 0.5, (0.88, 0.78)))
    apart = [*measured("ours", 0.5, (0.90, 0.80)), *measured("ours", 0.5, (0.88, 0.78), seed=1)]
    close = [*apart, *measured("shared_mask", 0.5, (0.88, 0.79)), *measured("shared_mask", 0.5, (0.88, 0.77), seed=1)]
    said = "0.8300 (-2.00 to dense), weightpager 0.8400 (-1.00 to dense); seeds differ by more."
    assert said in page(close)
    assert "Where something simpler" not in page([*apart, *measured("shared_mask", 0.5, (0.87, 0.78))])
    int4_below = [*measured("ours", 0.5, (0.88, 0.78)), *measured("int4", 0.265, (0.95, 0.95), recover="none")]
    assert "dense in int4 at 0.265" in page(int4_below)
    just_above = [*measured("ours", 0.25, (0.88, 0.78)), *measured("int4", 0.281, (0.95, 0.95), recover="none")]
    assert "dense in int4 at 0.281" in page(just_above)
    int8_above = [*measured("ours", 0.25, (0.88, 0.78)), *measured("int8", 0.503, (0.95, 0.95), recover="none")]
    assert "Where something simpler" not in page(int8_above)


def test_methods_with_other_seeds_are_compared_by_what_they_lose() -> None:
    ours = [*measured("ours", 0.5, (0.88, 0.78)), *measured("ours", 0.5, (0.84, 0.74), dense=(0.86, 0.76), seed=1)]
    assert "Where something simpler" not in page([*ours, *measured("shared_mask", 0.5, (0.87, 0.77))])
    better = page([*ours, *measured("shared_mask", 0.5, (0.881, 0.781))])
    assert "0.8310 (-1.90 to dense), weightpager 0.8100 (-2.00 to dense)." in better


def test_one_seed_may_be_off_by_half_a_point() -> None:
    ours = measured("ours", 0.5, (0.88, 0.78))
    for value, said in ((0.8751, True), (0.8749, False)):
        text = page([*ours, *measured("shared_mask", 0.5, (value, value - 0.1))])
        assert ("; with one seed, half a point may be chance." in text) is said
    dense = (10.0, 20.0)
    ours = measured("ours", 0.5, (11.0, 22.0), dense=dense, domain="B")
    for factor, said in ((1.1049, True), (1.1051, False)):
        shared = measured("shared_mask", 0.5, (10 * factor, 20 * factor), dense=dense, domain="B")
        assert (f"({factor:.3f} × dense), weightpager 16.50 (1.100 × dense)" in page([*ours, *shared])) is said


@pytest.mark.slow
def test_the_command_writes_the_page_and_a_plot_for_each_domain(tmp_path: Path) -> None:
    file, out = tmp_path / "accuracy.json", tmp_path / "accuracy.md"
    known = [
        *measured("ours", 0.25, (0.88, 0.78)),
        *measured("ours", 0.25, (0.86, 0.77), seed=1),
        *measured("int8", 0.503, (0.89, 0.79), recover="none"),
        *measured("ours", 0.7, (11.0, 22.0), dense=(10.0, 20.0), domain="B"),
    ]
    rows.add(file, known)
    accuracy_page.main(file, out)
    (tmp_path / "results.md").touch()  # a page that stands beside it
    for target in re.findall(r"\]\(([^)#]+)\)", out.read_text()):
        assert (tmp_path / target).is_file(), target
    plot = (tmp_path / "accuracy-A.svg").read_text()
    assert {name for name in ("weightpager", "dense", "dense in int8", "one shared mask") if f">{name}<" in plot} == {
        "weightpager",
        "dense",
        "dense in int8",
    }
    again = out.read_text(), plot
    accuracy_page.main(file, out)
    assert again == (out.read_text(), (tmp_path / "accuracy-A.svg").read_text())


def test_tasks_that_write_are_compared_by_shares_of_the_dense_model() -> None:
    def shares(method: str, fraction: float, mean: float) -> list[Row]:
        *tasks, last = measured(method, fraction, (0.5, 0.6), domain="D")
        return [*tasks, replace(last, dense=1.0, value=mean)]

    low_rank = shares("low_rank_int4", WITH_LOW_RANK, 0.99)
    for mean, near, beside in ((0.981, "yes", "yes"), (0.975, "yes", "no"), (0.96, "no", "no")):
        known = [*low_rank, *shares("ours_int4", 0.14, mean)]
        assert verdict("0.97 of the dense", known, "ours_int4") == near
        assert verdict("at half of its bytes", known, "ours_int4") == beside
    assert verdict("at half of its bytes", shares("ours_int4", 0.14, 0.98), "ours_int4") == "not measured"
    few = [*shares("ours_int4", 0.07, 0.91), *shares("shared_mask_int4", 0.07, 0.87)]
    assert verdict("0.90 of the dense", few, "ours_int4") == "yes"
    assert verdict("at least 0.05 above one shared mask", few, "ours_int4") == "no"
    assert "Domain D: six tasks that write" in page([*low_rank, *few])

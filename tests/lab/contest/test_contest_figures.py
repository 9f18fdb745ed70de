"""The flat figures of a contest."""

from __future__ import annotations

import pytest

from contests import contest, found, row
from weightpager.bundle.report.compile_report import ControlScore, TaskScore
from weightpager_lab.contest.figures import figures, speedup
from weightpager_lab.timing import spread


def test_speeds_are_compared_over_all_pairs() -> None:
    ours, whole = row("ours", found(0.01)), row("sparse_whole", found(0.12))
    flat = figures(contest(ours, whole, row("sparse_strict", found(0.04))))
    assert flat["switch.speedup_whole_mean"] == pytest.approx(12.0)
    assert flat["switch.speedup_strict_mean"] == pytest.approx(4.0)
    assert flat["switch.speedup_strict_asked"] == pytest.approx(0.7 / 0.3, rel=1e-4)
    assert flat["switch.ready_p99_ms"] == pytest.approx(10.0)
    assert "switch.speedup_dense_mean" not in flat


def test_a_method_that_waits_for_nothing_is_compared_by_its_first_output() -> None:
    lazy, ours = row("dense_mapped", found(None)), row("ours", found(0.01))
    assert speedup(lazy, ours, "ready") is None
    assert speedup(lazy, ours, "first_output") is not None


def test_memory_is_compared_by_part() -> None:
    ours = row("ours", found(0.01, paged=100))
    flat = figures(contest(ours, row("shared_bf16", found(0.0, paged=400), peak_memory=10_000)))
    assert flat["memory.paged_below_shared_bf16"] == 0.75
    assert flat["memory.process_on_torch_below_shared_bf16"] == 0.5
    assert flat["memory.paged_below_checkpoints"] == 0.8


def test_processes_are_compared_where_both_compute_with_the_same_backend() -> None:
    ours = row("ours", found(0.01, backend="native"), peak_memory=400)
    shared = row("shared_bf16", found(0.0), peak_memory=10_000)
    blocks = row("ours_all_blocks", found(0.0, backend="native"), peak_memory=500)
    assert not [key for key in figures(contest(ours, shared)) if "process" in key and "below" in key]
    flat = figures(contest(ours, row("ours_on_torch", found(0.01), peak_memory=8000), shared, blocks))
    assert flat["memory.process_on_torch_below_shared_bf16"] == pytest.approx(0.2)
    assert flat["memory.process_on_native_below_shared_all_blocks"] == pytest.approx(0.2)
    assert "memory.process_on_torch_below_shared_all_blocks" not in flat


def test_the_best_rival_loses_no_more_than_we_do() -> None:
    controls = [
        ControlScore(name="int4", resident_bytes=1, scores={"a": 0.9, "b": 0.86}),
        ControlScore(name="shared mask", resident_bytes=1, scores={"a": 0.8, "b": 0.9}),
    ]
    ours, strict = row("ours", found(0.01, paged=100)), row("sparse_strict", found(0.04, paged=500))
    int4, mask = row("dense_int4", found(0.0, paged=350)), row("shared_mask", found(0.0, paged=90))
    blocks = row("ours_all_blocks", found(0.0, paged=700))
    asked = contest(ours, strict, int4, mask, blocks, controls=controls)
    assert figures(asked)["memory.weights_vs_best_rival"] == pytest.approx(150 / 400)
    worse = [controls[0].model_copy(update={"scores": {"a": 0.8, "b": 0.8}}), controls[1]]
    assert figures(asked.model_copy(update={"controls": worse}))["memory.weights_vs_best_rival"] == pytest.approx(
        150 / 550, rel=1e-4
    )
    assert "memory.weights_vs_best_rival" not in figures(contest(ours, mask, controls=controls))


def test_without_a_bundle_of_all_blocks_there_is_no_best_rival() -> None:
    rows = row("ours", found(0.01, paged=100)), row("sparse_strict", found(0.04, paged=500))
    assert "memory.weights_vs_best_rival" not in figures(contest(*rows))
    failed = row("ours_all_blocks", None, status="failed")
    assert "memory.weights_vs_best_rival" not in figures(contest(*rows, failed))
    blocks = row("ours_all_blocks", found(0.0, paged=700))
    assert figures(contest(*rows, blocks))["memory.weights_vs_best_rival"] == pytest.approx(150 / 550, rel=1e-4)


def test_a_companion_is_as_accurate_as_its_own_compile_or_a_control_says() -> None:
    control = ControlScore(name="int4", resident_bytes=1, scores={"a": 0.9, "b": 0.9})
    ours, blocks = row("ours", found(0.01, paged=100)), row("ours_all_blocks", found(0.0, paged=150))
    asked = contest(ours, blocks, row("ours_one_mask", found(0.0, paged=50)))
    assert "memory.weights_vs_best_rival" not in figures(asked)
    few_bits = asked.model_copy(
        update={"facts": asked.facts.model_copy(update={"dtype": "int4"}), "controls": [control]}
    )
    assert figures(few_bits)["memory.weights_vs_best_rival"] == 0.75
    own = {name: [score(task, "accuracy", 0.9, 0.89) for task in "ab"] for name in ("all_blocks", "one_mask")}
    flat = figures(asked.model_copy(update={"companion_scores": own}))
    assert flat["memory.weights_vs_best_rival"] == 1.5
    assert flat["accuracy.one_mask_mean"] == 0.89


def test_a_row_that_a_limit_of_ours_missed_is_in_no_figure() -> None:
    limit = ["storage: unlimited: no io controller"]
    ours, shared = row("ours", found(0.01)), row("shared_bf16", found(0.0), unlimited=limit)
    flat = figures(contest(ours, row("sparse_whole", found(0.12), unlimited=limit), shared))
    assert "switch.ready_mean_ms" in flat
    assert not [key for key in flat if "whole" in key or "shared_bf16" in key]


def test_rows_that_the_same_limit_missed_are_compared() -> None:
    limit = ["memory: unlimited: no memory controller"]
    flat = figures(contest(*(row(name, found(0.1), unlimited=limit) for name in ("ours", "sparse_whole"))))
    assert flat["switch.speedup_whole_mean"] == 1.0


def test_bookkeeping_accuracy_and_compile_have_figures() -> None:
    flat = figures(contest(row("ours", found(0.01, forward=0.002)), row("dense_direct", found(1, forward=0.004))))
    assert flat["bookkeeping.table_share"] == 0.1
    assert flat["bookkeeping.forward_speedup_dense"] == 2.0
    assert flat["accuracy.mean"] == 0.88
    assert flat["accuracy.shared_mask_mean"] == 0.85
    assert flat["compile.align_pack_share_of_calibrate"] == 0.06
    assert flat["compile.measure_sparse_seconds"] == 3.0


def score(name: str, metric: str, dense: float | None, sparse: float) -> TaskScore:
    return TaskScore(name=name, metric=metric, dense=dense, sparse=sparse, density=0.25, items=10)


def means(*scores: TaskScore) -> dict[str, float]:
    flat = figures(contest(row("ours", None), scores=list(scores)))
    return {key: value for key, value in flat.items() if key.startswith("accuracy.")}


def test_accuracies_and_perplexities_have_no_common_mean() -> None:
    a, b = score("a", "accuracy", 0.9, 0.8), score("b", "perplexity", 12.0, 14.0)
    assert means(a, b) == {}
    assert means(b)["accuracy.mean"] == 14.0
    assert means(a, score("b", "token accuracy", 0.7, 0.6))["accuracy.mean"] == 0.7


def test_all_means_are_over_the_tasks_that_have_a_dense_score() -> None:
    found = means(score("a", "accuracy", 0.9, 0.7), score("b", "accuracy", None, 0.1))
    assert found == {"accuracy.mean": 0.7, "accuracy.dense_mean": 0.9, "accuracy.shared_mask_mean": 0.8}
    assert "accuracy.shared_mask_mean" not in means(score("new", "accuracy", 0.9, 0.7))


def test_what_was_not_measured_has_no_key() -> None:
    flat = figures(contest(row("ours", None), scores=[], controls=[], compile_seconds={}))
    assert not [key for key in flat if key.startswith(("memory.", "accuracy.", "compile."))]
    assert spread([]) is None

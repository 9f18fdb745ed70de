"""The page of results, from contests that are made up."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import published, results
from benchmarks.prefetch.rows import Row as PrefetchRow
from benchmarks.readme import ROOT
from benchmarks.report import results_file, run
from benchmarks.report.goals import GOALS, verdict
from benchmarks.report.reasons import reasons
from benchmarks.report.results_file import CompileRow, GranularityRow, Results, ScalingRow
from benchmarks.report.winners import headlines, winners
from contests import contest, found, row
from weightpager.config import parse_size
from weightpager_lab.contest.figures import figures
from weightpager_lab.contest.result import Contest, Found, Row


def made_up(*rows: Row) -> Contest:
    plain = contest(*rows)
    return plain.model_copy(update={"figures": figures(plain)})


SCALING = ScalingRow(
    model="made up",
    tasks=2,
    sparsity=0.75,
    overlap=0.6,
    page_bytes=4096,
    task_bytes=4096,
    stored_bytes=8192,
    separate_bytes=9000,
    table_bytes=100,
    switch_bytes=2048,
    switch_ms=1.0,
    switch_p99_ms=2.0,
    command="python",
    commit="abc",
)


PAGE_SIZE = GranularityRow(
    model="made up",
    tasks=6,
    sparsity=0.75,
    block="16x32",
    page_bytes=65536,
    pages=9,
    page_fill=1.0,
    planned_bytes=1,
    kept_bytes=1,
    reads=1.0,
    direct_ms=1.0,
    buffered_ms=1.0,
    buffered_bytes=1,
    cached_ms=1.0,
    forward_ms=1.0,
    table_bytes=1,
    doubt="",
    command="python",
    commit="abc",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ours, whole = row("ours", found(0.01)), row("sparse_whole", found(0.12))
    rows = (
        ours,
        whole,
        row("shared_mask", found(0.000001)),
        row("shared_int8", found(0.0000001), unlimited=["storage: unlimited: no blkio or io controller"]),
        row("llama_cpp", None, reason="no wheel"),
    )
    results = Results(contests={"text assistant, six tasks": made_up(*rows)}, scaling=[SCALING, SCALING])
    results_file.write(tmp_path / "results.json", results)
    return tmp_path


def page(folder: Path) -> str:
    run.main(folder / "results.json", folder / "results.md")
    return (folder / "results.md").read_text(encoding="utf-8")


def test_the_first_table_names_what_beats_us(folder: Path) -> None:
    first = page(folder).split("## Our own goals")[0]
    best_of_loading = "ours; next the sparse_whole, 120 ms, torch"
    best = "**the shared_mask**, 0.001 ms, torch"
    assert f"| a cold switch until ready | {best} | {best_of_loading} | 10 ms, torch |" in first
    assert "| text assistant, six tasks | bfloat16 | 0.70 | 10 ms | 12.0 × |" in first
    assert "| 0.9000 | 0.8800 | 0.8000 |" in first


def test_a_row_whose_limit_did_not_hold_is_marked_and_wins_nothing(folder: Path) -> None:
    first, rest = page(folder).split("## Our own goals")
    assert "shared_int8" not in first
    assert "| the shared_int8* |" in rest


WARM = "a.bin: tmpfs keeps its files in memory"


def warm(ready: float) -> Found:
    return found(ready).model_copy(update={"cold_note": WARM})


def test_a_rival_that_was_not_proved_cold_wins_nothing_and_says_so() -> None:
    text = made_up(row("ours", found(0.01)), row("sparse_whole", warm(0.001)), row("sparse_strict", found(0.04)))
    assert text.row("sparse_whole") is None
    assert "switch.speedup_whole_mean" not in text.figures
    assert "ours; next the sparse_strict, 40 ms" in winners({"text": text})
    assert run.tables.not_measured(text) == [f"the sparse_whole: not proved cold, {WARM}"]


def test_where_we_were_not_proved_cold_no_switch_counts() -> None:
    text = made_up(row("ours", warm(0.01)), row("sparse_whole", warm(0.12)))
    assert verdict(GOALS[0], text) == ("not proved cold", "–")
    assert "| a cold switch" not in winners({"text": text})
    assert "| a warm forward |" in winners({"text": text})
    assert "12.0 ×" not in headlines({"text": text})
    assert verdict(next(goal for goal in GOALS if goal.key == "memory.paged_below_checkpoints"), text)[0] == "yes"


def test_a_page_size_that_may_not_have_been_read_cold_says_so() -> None:
    assert run.tables.doubts([PAGE_SIZE]) == []
    (line,) = run.tables.doubts([PAGE_SIZE.model_copy(update={"doubt": WARM})])
    assert line == f"Blocks 16x32, pages of 64.0 KiB: {WARM}, so that its times count for nothing."


def test_what_was_asked_is_answered(folder: Path) -> None:
    text = page(folder)
    assert f"| {GOALS[0].asked} | yes, 12 |" in text
    assert "| not measured | – |" in text
    assert "the llama_cpp: skipped, no wheel" in text
    assert "not under the limit: storage: unlimited" in text
    assert "| driving | – | – | not measured |" in text


def test_every_plot_that_is_shown_is_there(folder: Path) -> None:
    text = page(folder)
    shown = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert len(shown) == 4
    assert all((folder / name).read_text(encoding="utf-8").startswith("<svg") for name in shown)


def test_the_same_results_make_the_same_page(folder: Path) -> None:
    assert page(folder) == page(folder)


def test_the_published_page_is_that_of_the_rows_beside_it() -> None:
    json, page = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"
    expected = run.render(results_file.read(json), json, page)
    assert page.read_text(encoding="utf-8") == expected, "run `python -m benchmarks.report`"


def test_a_missed_figure_is_said_in_bold() -> None:
    slow = made_up(row("ours", found(0.1)), row("sparse_whole", found(0.12)))
    assert verdict(GOALS[0], slow)[0] == "no"
    assert "**no**" in run.tables.goals({"slow": slow})


def test_what_keeps_a_contest_from_its_figure_is_said() -> None:
    whole = found(0.12)
    whole = whole.model_copy(
        update={"samples": [sample.model_copy(update={"bytes": 3 * 4096}) for sample in whole.samples]}
    )
    slow = made_up(row("ours", found(0.1)), row("sparse_whole", whole))
    slow = slow.model_copy(update={"limits": slow.limits.model_copy(update={"storage": 81_920})})
    assert reasons({"slow": slow}) == [
        "Slow: a whole checkpoint is 3.0 × as many bytes as a switch reads, 12.0 KiB and 4.0 KiB; of a switch's 100 ms "
        "those take 50 ms, and 50 ms are what any switch costs."
    ]


def test_a_contest_that_reached_all_needs_no_reasons() -> None:
    assert reasons({"fast": made_up(row("ours", found(0.001)), row("sparse_whole", found(0.12)))}) == []


def test_a_process_that_is_hardly_less_says_what_it_holds() -> None:
    close = made_up(row("ours", found(0.001)), row("shared_bf16", found(0.000001), peak_memory=5100))
    assert "of the process's 4.9 KiB on torch weights are 150 B;" in " ".join(reasons({"close": close}))


def test_figures_of_sparse_bundles_are_asked_of_them_alone() -> None:
    goal = next(goal for goal in GOALS if goal.sparse)
    dense = contest()
    half = dense.model_copy(update={"facts": dense.facts.model_copy(update={"sparsity": 0.5})})
    assert verdict(goal, half)[0] == "not asked"
    assert verdict(goal, dense)[0] == "not measured"


def test_figures_of_int4_are_asked_of_int4_and_of_their_contest_alone() -> None:
    goal = next(goal for goal in GOALS if goal.most is not None)
    blocks = row("ours_all_blocks", found(0.0, paged=700))
    plain = contest(row("ours", found(0.01, paged=100)), row("sparse_strict", found(0.04, paged=500)), blocks)
    plain = plain.model_copy(update={"figures": figures(plain)})
    few_bits = plain.model_copy(update={"facts": plain.facts.model_copy(update={"dtype": "int4"})})
    assert verdict(goal, plain)[0] == "not asked"
    assert verdict(goal, few_bits) == ("yes", "0.273")
    assert goal.asked_of("text assistant, six tasks")
    assert not goal.asked_of("driving, rendered scenes")
    assert f"| {goal.asked} | yes, 0.273 | – |" in run.tables.goals({"text assistant": few_bits, "driving": few_bits})
    assert goal.asked not in run.tables.goals({"driving": few_bits})


def test_alignment_is_held_against_calibration() -> None:
    row = CompileRow(
        tasks=6,
        calibration_items=128,
        calibration_tokens=256,
        seconds={"calibrate": 10.0, "floors": 0.125, "align": 0.5, "pack": 0.125},
        stage_memory={"align": 3 << 20},
        peak_memory=None,
        duality_gap=0.001,
        command="python",
        commit="abc",
    )
    assert "| yes | 0.075 |" in run.tables.other_goals(row, {})
    assert "| align | 3.0 MiB | 0.50 s |" in run.tables.compile_cost({}, row)
    assert run.tables.compile_peak(row) == "3.0 MiB"
    assert run.tables.compile_peak(row.model_copy(update={"peak_memory": 5 << 20})) == "5.0 MiB"


@pytest.mark.slow
def test_prefetch_rows_are_shown_and_judged_where_there_are_some(folder: Path) -> None:
    assert "| drive trace, half a billion parameters, random | not measured | – |" in page(folder)
    waits = {"prefetch": 1.25, "whole sparse checkpoints": 30.0}
    rows = [
        PrefetchRow("drive", 1.3, 0.5, policy, 9, wait, 2.0, 0.9, 0, None, mode, "python", "abc")
        for policy, wait in waits.items()
        for mode in ("real", "virtual")
    ]
    (folder / "prefetch.json").write_text(json.dumps([asdict(row) for row in rows]))
    assert page(folder).count("| drive | 0.5 | prefetch | 9 | 1.25 ms | 2 ms | 90% |") == 1
    assert "| drive trace, half a billion parameters, random | yes | 24 |" in page(folder)
    assert "| assistant trace, half a billion parameters, random | not measured | – |" in page(folder)


def test_published_lists_are_shown_where_they_were_measured(folder: Path) -> None:
    assert "published layers" not in page(folder)
    rows = [
        published.Row(
            "Vicuna 7B", "int4", 300, "car", "light", repeat, counted=8.5, bytes=2, whole_bytes=17, seconds=1.0,
            raw_seconds=2.0, whole_seconds=whole, budget=1, writing_peak=None, doubt="", command="python",
            commit="abc", cpu="x",
        )
        for repeat, whole in enumerate((7.0, 8.0, 30.0))
    ]  # fmt: skip
    (folder / "published.json").write_text(json.dumps([asdict(row) for row in rows]))
    found = page(folder)
    assert "| counted, published | 5.50 | 8.50 | 4.67 | – | – |" in found
    assert "| counted, SLEB | 3.06 | 4.50 | 3.40 | – | – |" in found
    assert "| int4, 300 MB/s | 8.00 | 8.00 | 8.00 | 0.94 | 0.50 |" in found
    assert "| car → light | 8.50 | 2.75 | 8.00 |" in found
    assert "| person → car | 2.83 | 6.00 | – |" in found
    assert "* `python`, commit abc, on x" in found


def test_a_page_of_results_needs_results(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="expected a file of results"):
        run.main(tmp_path / "none.json", tmp_path / "page.md")


def test_headlines_say_how_many_pairs_they_rest_on() -> None:
    hasty = found(0.1)
    hasty = hasty.model_copy(update={"samples": hasty.samples[:1]})
    ours = row("ours", found(0.01))
    assert "| 2 of 2 |" in headlines({"whole": contest(ours, row("sparse_whole", found(0.1)))})
    assert "| 1 of 2 |" in headlines({"cut short": contest(ours, row("sparse_whole", hasty))})


def test_a_rival_that_the_benchmark_itself_filled_the_memory_of_is_not_said_to_need_it() -> None:
    killed = row("shared_mask", None, status="failed", reason="killed for want of memory: it needs more than 2.0 GiB")
    plain = contest(row("ours", found(0.01)), killed, killed.model_copy(update={"set_up": True, "room": 2.0}))
    few_bits = plain.model_copy(update={"facts": plain.facts.model_copy(update={"dtype": "int4"})})
    before, after = run.tables.not_measured(few_bits)
    assert before.startswith(
        "the shared_mask: failed, killed for want of memory at 2.0 GiB. The benchmark's own set-up "
    )
    assert after == "the shared_mask, room for 2 tasks: failed, killed for want of memory: it needs more than 2.0 GiB"
    assert "own set-up" not in run.tables.not_measured(plain)[0]


def test_a_processor_without_bfloat16_is_named_where_its_forwards_mislead() -> None:
    rows = row("ours", found(0.01)), row("dense_direct", found(1, forward=4.0))
    plain = made_up(*rows)
    slow = plain.model_copy(update={"machine": {**plain.machine, "isa": ["avx2"]}})
    assert "forward_speedup_dense" not in " ".join(figures(slow))
    assert "| slow | 0.1 | 1 | –, no bfloat16 |" in run.tables.bookkeeping({"slow": slow})
    assert "| plain | 0.1 | 1 | 4e+03 |" in run.tables.bookkeeping({"plain": plain})
    (said,) = run.tables.slow_at_bf16({"plain": plain, "slow": slow})
    assert said.startswith("The contest *slow* ran on a processor")
    assert "takes 4.00 s there" in said


def test_tasks_of_page_sizes_are_those_that_were_measured() -> None:
    known = PAGE_SIZE.model_copy(update={"overlap": 0.5})
    assert run.tables.of_tasks([PAGE_SIZE, PAGE_SIZE]) == "6 tasks at 75% sparsity"
    assert run.tables.of_tasks([known]) == "6 tasks at 75% sparsity that overlap by 0.50"


def test_rows_are_compared_over_the_pairs_that_both_have() -> None:
    ours = found(0.01)
    slow = [sample.model_copy(update={"ready": 0.05}) for sample in ours.samples if sample.from_task == "b"]
    uneven = ours.model_copy(update={"samples": [*ours.samples[:1], *slow]})  # 10 ms from a, 50 ms from b
    hasty = found(0.02)
    hasty = hasty.model_copy(update={"samples": hasty.samples[:1]})  # from a alone
    said = winners({"uneven": contest(row("ours", uneven), row("sparse_whole", hasty))})
    assert "| a cold switch until ready | ours; next the sparse_whole, 20 ms (1 of 2 pairs), torch |" in said
    assert "| 30 ms, torch |" in said


def test_of_our_rows_always_the_same_is_compared() -> None:
    lucky = row("ours_while_loading", found(None, forward=0.0001), peak_memory=1)
    said = winners({"even": contest(row("ours", found(0.01)), lucky, row("sparse_whole", found(0.12)))})
    behind = "ours; next the sparse_whole, 1 ms, torch"
    assert f"| a warm forward | {behind} | {behind} | 1 ms, torch |" in said
    assert "| charged to the group, peak | ours; next the sparse_whole, 4.9 KiB, torch |" in said
    assert "| a cold switch until the first output | ours; next the sparse_whole, 121 ms, torch |" in said
    assert "| 0.1 ms, torch |" in said  # running while it loads, the first output comes at once


def test_what_computed_is_said_of_both_sides() -> None:
    ours = row("ours", found(0.01, backend="native"), peak_memory=1000)
    said = winners({"text": contest(ours, row("sparse_whole", found(0.12)))})
    assert "| ours; next the sparse_whole, 4.9 KiB, torch | 1000 B, native code |" in said


def test_a_bundle_that_never_switches_is_a_rival_although_it_is_ours() -> None:
    ours, whole = row("ours", found(0.01, paged=100)), row("sparse_whole", found(0.12, paged=900))
    blocks, unaligned = row("ours_all_blocks", found(0.0, paged=300)), row("ours_unaligned", found(0.02, paged=200))
    said = winners({"text": contest(ours, whole, blocks, unaligned)})
    assert "| a cold switch until ready | **the ours_all_blocks**, 0 ms, torch | ours; next the sparse_whole," in said
    assert "| weights in memory | ours; next the ours_all_blocks, 350 B, torch | ours; next the sparse_whole," in said


def test_memory_is_a_dash_where_nothing_alike_took_part(folder: Path) -> None:
    assert "None took part in these contests" in page(folder)
    rows = row("ours", found(0.01, backend="native")), row("shared_bf16", found(0.0, paged=400))
    assert "| -75% | – | – | – |" in headlines({"text": made_up(*rows)})
    alike = (
        row("ours_on_torch", found(0.01), peak_memory=4000),
        row("ours_all_blocks", found(0.0, backend="native"), peak_memory=4000),
    )
    assert "| -75% | – | -20% | +25% |" in headlines({"text": made_up(*rows, *alike)})


def test_figures_are_made_anew_from_the_rows(folder: Path) -> None:
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    (text,) = content["contests"].values()
    text["figures"] = {"memory.weights_vs_best_rival": 0.24, "memory.process_below_shared_bf16": 0.89}
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
    (read,) = results_file.read(folder / "results.json").contests.values()
    assert not text["figures"].keys() & read.figures.keys()
    assert read.figures["switch.speedup_whole_mean"] == 12


def test_rows_say_once_what_they_were_measured_with_and_what_on() -> None:
    known = SCALING.model_copy(update={"cpu": "a CPU"})
    assert run.tables.sources([SCALING, SCALING, known]) == [
        "`python`, commit abc, machine not recorded",
        "`python`, commit abc, on a CPU",
    ]


def test_the_page_says_where_all_figures_come_from(folder: Path) -> None:
    text = page(folder)
    assert "* `python`, commit abc, machine not recorded" in text.split("## Scaling with tasks")[1]
    assert "load average before the run: 0.1." in text
    assert "The prompt of a contest was always the same" in text


def test_an_lru_that_did_not_use_its_room_says_so() -> None:
    one, two = (row("sparse_lru", found(None, paged=paged), room=2.0) for paged in (90, 180))
    assert run.tables.not_measured(contest(row("ours", found(0.01)), two)) == []
    (line,) = run.tables.not_measured(contest(row("ours", found(0.01)), one))
    assert line.startswith("the sparse_lru, room for 2 tasks: it held one task")


def test_a_contest_that_is_run_again_has_the_memory_that_it_had() -> None:
    before = results_file.read(Path(__file__).parents[2] / "docs" / "results.json").contests
    assert {name: parse_size(results.memory_of(name)) for name in before} == {
        name: contest.limits.memory for name, contest in before.items()
    }

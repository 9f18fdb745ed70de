"""The tables of ``docs/results.md``: pure, from contests to Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Protocol

from benchmarks.prefetch.rows import DRIVING
from benchmarks.report.goals import (
    GOALS,
    LEAST_AHEAD,
    MOST_ALIGN_PACK,
    MOST_SHARE,
    NOT_ASKED,
    PUBLISHED,
    TRACES_AHEAD,
    verdict,
)
from benchmarks.report.results_file import CompileRow, GranularityRow, ScalingRow
from weightpager.config import format_size
from weightpager_lab.contest.result import Contest, Row
from weightpager_lab.timing import spread

_ROUNDED = ("sparse_strict", "sparse_lru", "shared_mask")
"""Methods whose set-up rounded tables until results said whether a method had been set up when it failed."""

AHEAD_OF = "half a billion parameters, random"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *lines])


def title(name: str) -> str:
    """A contest's name where a line begins."""
    return name[0].upper() + name[1:]


def mean(row: Row, field: str) -> float | None:
    """Of a row's samples; None if it has none of the field."""
    values = row.values(field)  # type: ignore[arg-type]
    return fmean(values) if values else None


def accuracy_beside(contests: Mapping[str, Contest]) -> str:
    """Accuracy of the bundles that were timed, and of what needs no paging, if the compile measured it."""
    names = list(dict.fromkeys(control.name for contest in contests.values() for control in contest.controls))
    lines = []
    for name, contest in contests.items():
        for score in contest.scores:
            controls = {control.name: f"{control.scores[score.name]:.4f}" for control in contest.controls}
            dense = "–" if score.dense is None else f"{score.dense:.4f}"
            beside = [controls.get(control, "–") for control in names]
            lines.append([name, score.name, score.metric, dense, f"{score.sparse:.4f}", *beside])
    heads = ["dense, trained as long" if name == "dense" else name for name in names]
    return table(["contest", "task", "metric", "dense", "weightpager", *heads], lines) if lines else ""


def goals(contests: Mapping[str, Contest]) -> str:
    """A line for each goal: whether each contest reached it, and what it found; a dash where it wasn't asked."""
    lines = []
    for goal in GOALS:
        answers = [verdict(goal, contest) if goal.asked_of(name) else NOT_ASKED for name, contest in contests.items()]
        if any(answer != NOT_ASKED for answer in answers):
            lines.append([goal.asked, *(_answer(*answer) for answer in answers)])
    return table(["goal, set before", *contests], lines)


def _answer(reached: str, found: str) -> str:
    if reached == "not asked":
        return "–"
    word = f"**{reached}**" if reached == "no" else reached
    return word if found == "–" else f"{word}, {found}"


def other_goals(compiling: CompileRow | None, ahead: Mapping[str, float]) -> str:
    """What was asked of the traces with prefetch and of the compile, and what they found."""
    lines = []
    for trace in TRACES_AHEAD:
        asked = f"waiting with prefetch at least {LEAST_AHEAD:g} × less than for whole sparse checkpoints"
        found_ahead = ahead.get(f"prefetch.{trace}.speedup_whole_mean")
        word = "not measured" if found_ahead is None else "yes" if found_ahead >= LEAST_AHEAD else "**no**"
        said = "–" if found_ahead is None else f"{found_ahead:.3g}"
        lines.append([asked, f"{trace} trace, {AHEAD_OF}", word, said])
    asked = f"waiting with prefetch at most {MOST_SHARE:g} of that without"
    lines.append([asked, "drive trace, driving", *_at_most(ahead.get(f"prefetch.{DRIVING}.wait_share"), MOST_SHARE)])
    asked = f"alignment and packing at most {MOST_ALIGN_PACK:.0%} of the calibration's time"
    share = None if compiling is None else compiling.align_pack_share
    lines.append([asked, "text assistant", *_at_most(share, MOST_ALIGN_PACK)])
    return table(["goal, set before", "of", "reached", "found"], lines)


def _at_most(found: float | None, most: float) -> tuple[str, str]:
    """Whether a figure reached its goal, and the figure."""
    if found is None:
        return "not measured", "–"
    return "yes" if found <= most else "**no**", f"{found:.3g}"


def published(contests: Mapping[str, Contest]) -> str:
    """The published system's figures beside ours."""
    lines = [
        [text, *(f"{contest.figures[key]:.3g}" if key in contest.figures else "–" for contest in contests.values())]
        for key, (text, _) in PUBLISHED.items()
    ]
    return table(["published", *contests], lines)


def methods(contest: Contest) -> str:
    """Every method of a contest."""
    lines = []
    for row in contest.rows:
        if row.found is None:
            continue
        memory = row.found.memory
        ready, first = spread(row.values("ready")), spread(row.values("first_output"))
        lines.append([
            _name(row) + ("*" if row.unlimited else ""),
            _percentiles(ready),
            _percentiles(first),
            size(mean(row, "bytes")),
            _bandwidth(row),
            "–" if row.mean_waited is None else ms(row.mean_waited),
            format_size(memory.weights),
            format_size(memory.paged),
            size(row.peak_memory),
            format_size(memory.proportional),
            f"{row.found.tokens / median(row.found.forwards):.0f}",
            str(len(row.found.samples)),
        ])  # fmt: skip
    header = [
        "method", "ready, ms", "first output, ms", "read a switch", "GB/s",
        "a visit waits", "weights", "paged weights", "charged to the group, peak", "process, PSS",
        "tokens (images) a second", "switches",
    ]  # fmt: skip
    return table(header, lines)


def not_measured(contest: Contest) -> list[str]:
    """A line for every method that has no figures or wasn't proved cold, and for every limit that didn't hold."""
    lines = [f"{_name(row)}: {row.status}, {_reason(row, contest)}" for row in contest.rows if row.status != "measured"]
    lines += sorted({f"* not under the limit: {line}" for row in contest.rows for line in row.unlimited})
    lines += [f"{_name(row)}: not proved cold, {row.cold_note}" for row in contest.rows if row.cold_note]
    return lines + [
        f"{_name(row)}: it held one task, because its own tables, which are whole, were taken off the budget; they no "
        "longer are"
        for row in contest.rows
        if _held_one(row, contest)
    ]


def _held_one(row: Row, contest: Contest) -> bool:
    """Whether an LRU that had room for more held one task at the end of a trace."""
    if row.method != "sparse_lru" or row.room < 2 or row.found is None:
        return False
    return row.found.memory.paged <= contest.facts.largest_task_bytes


def _name(row: Row) -> str:
    return row.title + (f", room for {row.room:g} tasks" if row.room != 1 else "")


def _reason(row: Row, contest: Contest) -> str:
    """Why a row has no figures; of some methods it was an earlier version of the benchmark that filled the memory."""
    rounded = row.method in _ROUNDED and contest.facts.dtype in ("int8", "int4")
    killed, _, limit = row.reason.partition(": it needs more than ")
    if row.set_up is not None or not limit or not rounded:
        return row.reason
    return (
        f"{killed} at {limit}. The benchmark's own set-up needed that much: it rounded the embedding table in the "
        "process that was measured, and no longer does. What the method needs was not measured"
    )


def bookkeeping(contests: Mapping[str, Contest]) -> str:
    """What blocks cost beside their weights."""
    keys = {
        "bookkeeping.table_share": "tables, share of pages and tables",
        "bookkeeping.forward_ms": "forward of a prompt, ms",
        "bookkeeping.forward_speedup_dense": "dense forward ÷ ours",
    }
    lines = [[name, *(_bookkept(contest, key) for key in keys)] for name, contest in contests.items()]
    return table(["contest", *keys.values()], lines)


def _bookkept(contest: Contest, key: str) -> str:
    if key.endswith("_dense") and not contest.has_bf16:
        return "–, no bfloat16"
    return f"{contest.figures[key]:.3g}" if key in contest.figures else "–"


def slow_at_bf16(contests: Mapping[str, Contest]) -> list[str]:
    """A sentence for each contest whose processor can't do what its rivals compute in."""
    return [_slow(name, contest) for name, contest in contests.items() if not contest.has_bf16]


def _slow(name: str, contest: Contest) -> str:
    said = f"The contest *{name}* ran on a processor without instructions for bfloat16, in which rivals compute.\n"
    dense = contest.row("dense_direct")
    if dense is not None and dense.found is not None:
        said += f"A forward of a dense checkpoint takes {ms(median(dense.found.forwards))} there. "
    return said + "Compare switches until ready there, not first outputs."


def compile_cost(contests: Mapping[str, Contest], compiling: CompileRow | None) -> str:
    """Seconds and memory of every stage of the compile that was measured, and seconds of those behind the contests."""
    columns = {"measured": compiling.seconds} if compiling else {}
    columns |= {name: contest.compile_seconds for name, contest in contests.items() if contest.compile_seconds}
    stages = dict.fromkeys(stage for seconds in columns.values() for stage in seconds)
    memory = compiling.stage_memory if compiling else {}
    lines = [
        [
            stage,
            size(memory.get(stage)),
            *(f"{seconds[stage]:.2f} s" if stage in seconds else "–" for seconds in columns.values()),
        ]
        for stage in stages
    ]
    return table(["stage", "memory, measured", *columns], lines) if lines else ""


def granularity(rows: Sequence[GranularityRow]) -> str:
    """Page sizes and block shapes."""
    header = [
        "block", "page", "fill", "needed", "read", "reads", "direct", "through the page cache", "delivered for that",
        "from a warm cache", "forward", "tables",
    ]  # fmt: skip
    lines = [
        [
            row.block, format_size(row.page_bytes), f"{row.page_fill:.2f}", format_size(row.kept_bytes),
            format_size(row.planned_bytes), f"{row.reads:.0f}", f"{row.direct_ms:.1f} ms", f"{row.buffered_ms:.1f} ms",
            format_size(row.buffered_bytes), f"{row.cached_ms:.1f} ms", f"{row.forward_ms:.2f} ms",
            format_size(row.table_bytes),
        ]
        for row in rows
    ]  # fmt: skip
    return table(header, lines)


class Sourced(Protocol):
    """A row that says where it comes from; ``cpu`` is empty in rows of earlier versions."""

    @property
    def command(self) -> str: ...
    @property
    def commit(self) -> str: ...
    @property
    def cpu(self) -> str: ...


def sources(rows: Sequence[Sourced]) -> list[str]:
    """A line for each command that rows were measured with."""
    found = dict.fromkeys((row.command, row.commit, row.cpu) for row in rows)
    return [
        f"`{command}`, commit {commit}, {f'on {cpu}' if cpu else 'machine not recorded'}"
        for command, commit, cpu in found
    ]


def compile_peak(compiling: CompileRow | None) -> str:
    """The most memory of a compile, by whichever count is larger; empty without one."""
    if compiling is None:
        return ""
    return size(max([compiling.peak_memory or 0, *compiling.stage_memory.values()]) or None)


def of_tasks(rows: Sequence[GranularityRow]) -> str:
    """What tasks the bundles have of which switches were measured."""
    found = {(row.tasks, row.sparsity, row.overlap): None for row in rows}
    return "; ".join(
        f"{tasks} tasks at {sparsity:.0%} sparsity" + ("" if overlap is None else f" that overlap by {overlap:.2f}")
        for tasks, sparsity, overlap in found
    )


def doubts(rows: Sequence[GranularityRow]) -> list[str]:
    """A line for each row whose reads may not have been cold."""
    return [
        f"Blocks {row.block}, pages of {format_size(row.page_bytes)}: {row.doubt}, so that its times count for nothing."
        for row in rows
        if row.doubt
    ]


def scaling(rows: Sequence[ScalingRow]) -> str:
    """More and more tasks."""
    header = [
        "tasks",
        "overlap",
        "page",
        "smallest arena",
        "all pages",
        "a checkpoint each",
        "tables",
        "a switch reads",
        "mean",
        "p99",
    ]
    lines = [
        [
            str(row.tasks), f"{row.overlap:.2f}", format_size(row.page_bytes), format_size(row.task_bytes),
            format_size(row.stored_bytes), format_size(row.separate_bytes), format_size(row.table_bytes),
            format_size(row.switch_bytes), f"{row.switch_ms:.1f} ms", f"{row.switch_p99_ms:.1f} ms",
        ]
        for row in rows
    ]  # fmt: skip
    return table(header, lines)


def _bandwidth(row: Row) -> str:
    seconds, count = sum(row.values("ready")), sum(row.values("bytes"))
    return f"{count / seconds / 1e9:.2f}" if seconds and count else "–"


def _percentiles(found: dict[str, float] | None) -> str:
    return "–" if found is None else " / ".join(f"{1e3 * found[key]:.1f}" for key in ("p50", "p95", "p99"))


def ms(seconds: float) -> str:
    """A time as people read it."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def size(count: float | None) -> str:
    """A size as people read it; a dash for none."""
    return "–" if count is None else format_size(count)

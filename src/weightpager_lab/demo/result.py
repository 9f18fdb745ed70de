"""What the demo found out; `DemoResult` is the shape of ``demo --json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightpager.bundle.report.compile_report import Document, Interval
from weightpager.config import format_size


class DemoTask(Document):
    """A task's metric: the dense model, ours, one mask shared by all tasks, and the dense model quantised.

    All have been trained as long. The interval of ours holds its true value in 95 of 100 cases.
    """

    name: str
    metric: str
    items: int
    dense: float
    sparse: float
    shared_mask: float
    int8: float
    int4: float
    sparse_interval: Interval | None = None


class DemoSwitch(Document):
    """One ordered pair, cold: medians over the repeats.

    Attributes:
        from_task: left (``from`` in JSON).
        to_task: wanted (``to`` in JSON).
        bytes: that the switch read; exactly what the plan said.
        ms: of the switch, checked pages in place.
        gbps: bytes per nanosecond while loading.
        whole_sparse_bytes: of the next task's own sparse checkpoint, paged weights only, in the pages' dtype.
        whole_sparse_ms: to read that whole.
        own_checkpoint_bytes: of all that the task has, tables in int8 included.
        own_checkpoint_ms: to read that whole.
        dense_ms: to read the whole dense checkpoint.
        raw_ms: of the same reads by eight plain native threads, every page hashed; None without the native module.
    """

    from_task: str
    to_task: str
    bytes: int
    ms: float
    gbps: float
    whole_sparse_bytes: int
    whole_sparse_ms: float
    own_checkpoint_bytes: int
    own_checkpoint_ms: float
    dense_ms: float
    raw_ms: float | None = None


ROW_FAULTS = "rows.forward_extra_ms_median"
"""The figure of what faults of rows on demand add to a text."""

OURS = "weightpager, arena of one task"
"""The row of memory that all others are compared with."""

RESIDENT = "weightpager, everything resident"
"""The same bundle with memory for all tasks."""


class Resident(Document):
    """A way to serve all tasks: its bytes in memory, what a switch must load, and the mean metric of the tasks.

    Attributes:
        name: for people; ours begin with ``weightpager``.
        bytes: of all weights in memory.
        paged_bytes: the part of them that holds paged weights.
        mean_bytes_per_switch: that are read.
        mean_metric: over the tasks.
        ms_per_switch: mean over the pairs, cold; 0 where nothing is read, None where it wasn't measured.
        is_bundle: whether it is a rival that weightpager runs, too: a bundle of which all tasks have the same blocks.
    """

    name: str
    bytes: int
    paged_bytes: int
    mean_bytes_per_switch: int
    mean_metric: float
    ms_per_switch: float | None = None
    is_bundle: bool = False

    @property
    def ours(self) -> bool:
        return self.name.startswith("weightpager")

    def row_faults(self, figures: Mapping[str, float]) -> float | None:
        """Milliseconds that rows on demand add to a text at the median, beside the switch; None where none come so."""
        return figures.get(ROW_FAULTS) if self.ours or self.is_bundle else None


class DemoResult(Document):
    """Everything that the table and the page show.

    ``figures`` are what was found of what was asked for, by flat key. ``verdict`` says who wins at what, ``budgets``
    what to take in how much memory. ``backend`` ran the tasks when they were measured. ``bundle`` is where
    what was compiled lies.
    """

    tasks: list[DemoTask]
    switches: list[DemoSwitch]
    memory: list[Resident]
    overlap: list[list[float]]
    mean_overlap: float
    mean_overlap_unaligned: float
    duality_gap: float
    budget: int
    sparsity: float
    dtype: str
    alignment: float
    training_steps: int
    recover_steps: int
    page_bytes: int
    page_fill: float
    dense_checkpoint_bytes: int
    cold: bool
    cold_note: str
    repeats: int
    missing: dict[str, str]
    compile_seconds: dict[str, float]
    seconds: float
    machine: dict[str, Any]
    figures: dict[str, float]
    verdict: str
    budgets: str = ""
    backend: str | None = None
    bundle: str = ""

    def mean(self, field: str) -> float:
        """Mean over the tasks of ``dense``, ``sparse``, ``shared_mask``, ``int8`` or ``int4``."""
        return sum(float(getattr(task, field)) for task in self.tasks) / len(self.tasks)

    def speedup(self, field: str) -> float:
        """All pairs' ``whole_sparse_ms`` or ``dense_ms`` together, over our time for all pairs together."""
        theirs = sum(float(getattr(switch, field)) for switch in self.switches)
        return theirs / sum(switch.ms for switch in self.switches)

    def speedup_range(self, field: str) -> tuple[float, float]:
        ratios = [float(getattr(switch, field)) / switch.ms for switch in self.switches]
        return min(ratios), max(ratios)

    def document(self) -> dict[str, Any]:
        """As ``demo --json`` prints it: ``from`` and ``to`` are not names that Python allows."""
        content = self.model_dump()
        for switch in content["switches"]:
            switch["from"], switch["to"] = switch.pop("from_task"), switch.pop("to_task")
        return content


@dataclass(frozen=True)
class Ranking:
    """The rows that decide who wins.

    Attributes:
        ours: with memory for one task.
        resident: ours with everything in memory; None where the table lacks it.
        rivals: all rows but weightpager's.
    """

    ours: Resident
    resident: Resident | None
    rivals: tuple[Resident, ...]

    @classmethod
    def of(cls, rows: Sequence[Resident]) -> Ranking:
        """Of a table that has our row and those of others."""
        ours = next(row for row in rows if row.name == OURS)
        resident = next((row for row in rows if row.name == RESIDENT), None)
        return cls(ours, resident, tuple(row for row in rows if not row.ours))

    @property
    def best(self) -> Resident | None:
        """Of the rivals that lose at most as much accuracy, the one in least memory; None if all lose more."""
        return self._least(self.rivals)

    @property
    def best_resident(self) -> Resident | None:
        """The same of those that never load."""
        return self._least([row for row in self.rivals if not row.mean_bytes_per_switch])

    @property
    def best_of_other_tools(self) -> Resident | None:
        """The same of what isn't a bundle."""
        return self._least([row for row in self.rivals if not row.is_bundle])

    @property
    def reload(self) -> Resident | None:
        """Of the rivals that load at a switch, the fastest; None if none was timed."""
        timed = [row for row in self.rivals if row.mean_bytes_per_switch and row.ms_per_switch]
        return min(timed, key=lambda row: row.ms_per_switch or 0.0, default=None)

    def _least(self, rivals: Sequence[Resident]) -> Resident | None:
        equal = (row for row in rivals if row.mean_metric >= self.ours.mean_metric)
        return min(equal, key=_bytes, default=None)


def memory_figures(rows: Sequence[Resident]) -> dict[str, float]:
    """Our weights in memory against the best rivals', by flat key; a key is missing where all rivals lose more."""
    ranking = Ranking.of(rows)
    compared = {
        "memory.weights_vs_best_rival": ranking.best,
        "memory.weights_vs_best_that_never_loads": ranking.best_resident,
        "memory.weights_vs_best_of_other_tools": ranking.best_of_other_tools,
    }
    return {key: ranking.ours.bytes / row.bytes for key, row in compared.items() if row is not None}


def switch_figures(switches: Sequence[DemoSwitch]) -> dict[str, float]:
    """Mean milliseconds of a switch, and how many times as long the reloads take, all pairs together and the worst.

    Also how many times as long as its raw reads a switch takes, and those reads' mean, where they were measured.
    """
    ours = sum(switch.ms for switch in switches)
    reload = "switch.speedup_own_sparse"
    return {
        "switch.ms_mean": ours / len(switches),
        f"{reload}_mean": sum(switch.whole_sparse_ms for switch in switches) / ours,
        f"{reload}_min": min(switch.whole_sparse_ms / switch.ms for switch in switches),
        f"{reload}_whole_mean": sum(switch.own_checkpoint_ms for switch in switches) / ours,
    } | _raw_figures([(switch.ms, switch.raw_ms) for switch in switches if switch.raw_ms])


def _raw_figures(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """All pairs together; empty where there are none.

    Args:
        pairs: milliseconds of a switch, and of its raw reads.
    """
    if not pairs:
        return {}
    ours, raw = (sum(column) for column in zip(*pairs, strict=True))
    return {"switch.over_raw_reads": ours / raw, "switch.raw_ms_mean": raw / len(pairs)}


BUDGETS = (3 << 20, 5 << 20, 8 << 20, 16 << 20)
"""What a person may have for weights, of whom `budgets` speaks."""


def line(rows: Sequence[Resident]) -> list[Resident]:
    """The bundles that no smaller one equals, with memory for one task each, the smallest first."""
    found: list[Resident] = []
    for row in sorted(filter(_is_choice, rows), key=lambda row: (row.bytes, -row.mean_metric)):
        if not found or row.mean_metric > found[-1].mean_metric:
            found.append(row)
    return found


def budgets(rows: Sequence[Resident]) -> str:
    """The most accurate bundle that each of `BUDGETS` holds, in words."""
    best: dict[str, int] = {}
    for size in BUDGETS:
        if held := [row for row in line(rows) if row.bytes <= size]:
            read = held[-1].mean_bytes_per_switch
            loads = f"{format_size(read)}" if read else "nothing"
            best.setdefault(f"{_content(held[-1])} ({held[-1].mean_metric:.3f}, {loads})", size)
    told = [f"{format_size(size).replace('.0', '')} hold {what}" for what, size in best.items()]
    return f"Mean accuracy, and what a switch reads: {'; '.join(told)}." if told else ""


def _is_choice(row: Resident) -> bool:
    return row.is_bundle or (row.ours and row.name != RESIDENT)


def _content(row: Resident) -> str:
    """What of the model a bundle holds."""
    whole = row.name.removeprefix("dense in ").removesuffix(", a bundle of all blocks")
    if row.name == OURS:
        return "a quarter of the blocks"
    return f"all blocks in {whole}" if whole != row.name else row.name.removeprefix("weightpager, ")


def verdict(rows: Sequence[Resident]) -> str:
    """One sentence that says who wins at memory, at accuracy and at switching."""
    ranking = Ranking.of(rows)
    return f"{_memory(ranking)}; {_accuracy(ranking)}; {_switching(ranking)}."


def _memory(ranking: Ranking) -> str:
    ours, best = ranking.ours, ranking.best
    if best is None:
        return f"Memory: weightpager wins, {format_size(ours.bytes)}, since all others lose more accuracy"
    if ours.bytes >= best.bytes:
        return (
            f"Memory: {best.name} wins, {format_size(best.bytes)} of weights for at least as much accuracy, where "
            f"weightpager takes {format_size(ours.bytes)}"
        )
    return (
        f"Memory: weightpager wins, {format_size(ours.bytes)} of weights, {ours.bytes / best.bytes:.2f} × of the least "
        f"that anything as accurate takes ({best.name}, {format_size(best.bytes)})"
    )


def _accuracy(ranking: Ranking) -> str:
    top = max((ranking.ours, *ranking.rivals), key=lambda row: (row.mean_metric, row is ranking.ours, -row.bytes))
    if top is ranking.ours:
        return f"accuracy: weightpager wins, {top.mean_metric:.3f}"
    ahead = 100 * (top.mean_metric - ranking.ours.mean_metric)
    return f"accuracy: {top.name} wins, {ahead:.1f} points above weightpager, in {format_size(top.bytes)}"


def _switching(ranking: Ranking) -> str:
    ours, reload = ranking.ours, ranking.reload
    never = [row for row in (ranking.resident, ranking.best_resident) if row is not None]
    parts = []
    if never:
        sizes = "; ".join(f"{row.name}, {format_size(row.bytes)}" for row in sorted(never, key=_bytes))
        parts.append(f"what never loads wins where it fits (as accurate: {sizes})")
    if reload is not None and ours.ms_per_switch and reload.ms_per_switch:
        ratio = reload.ms_per_switch / ours.ms_per_switch
        who = "weightpager" if ratio >= 1 else reload.name
        other = reload.name if ratio >= 1 else "weightpager"
        least = min(ours.ms_per_switch, reload.ms_per_switch)
        parts.append(f"of what loads, {who} wins, {least:.2g} ms, {max(ratio, 1 / ratio):.1f} × faster than {other}")
    return "switching: " + ", and ".join(parts) if parts else "switching: nothing was timed"


def _bytes(row: Resident) -> int:
    return row.bytes

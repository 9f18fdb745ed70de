"""Who wins at what: figures and a sentence from the rows of the demo's table. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightpager.config import format_size
from weightpager.lab.demo.result import OURS, DemoSwitch, Resident


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
        resident = next((row for row in rows if row.ours and not row.mean_bytes_per_switch), None)
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

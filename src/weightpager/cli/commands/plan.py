"""``plan``: what a switch would load, or which one is slowest. It reads a bundle without torch and loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from weightpager.bundle import Bundle
from weightpager.cli import output
from weightpager.cli.options import Budget, BundlePath, Json, Rows, Storage, task_names
from weightpager.config import parse_bandwidth, parse_latency, stated_size
from weightpager.errors import ConfigError
from weightpager.runtime.budget import MemoryNeeds, check_fits, needs_of
from weightpager.store import StorageModel, SwitchCost, switch_cost


def plan(
    bundle: BundlePath,
    from_task: Annotated[
        str | None,
        typer.Option("--from", help="Task that is left. Default: nothing is in memory yet.", autocompletion=task_names),
    ] = None,
    to_task: Annotated[str | None, typer.Option("--to", help="Task that is wanted.", autocompletion=task_names)] = None,
    worst: Annotated[
        bool, typer.Option("--worst", help="Show the slowest switch: from any task, and with nothing in memory.")
    ] = False,
    budget: Budget = None,
    rows: Rows = None,
    storage: Storage = "1GB/s",
    read_latency: Annotated[
        str, typer.Option(metavar="TIME", help="What each read takes beside its bytes, such as 0.3ms or 120us.")
    ] = "0.1ms",
    json: Json = False,
) -> None:
    """Show what a switch would load, how long it would take and the memory it needs; loads nothing.

    With `--worst`: the slowest switch between two tasks when only the old task's pages are in memory, and the slowest
    start when nothing is; only tasks that fit into the budget count. No switch takes longer than "at most", whatever
    else is in memory: a page that is there already may cut a read in two.

    Example: `weightpager plan assistant.bundle --from spam --to topic --storage 300MB/s`
    """
    opened = Bundle.open(bundle)
    model = StorageModel(parse_bandwidth(storage), parse_latency(read_latency, "--read-latency"))
    if worst == (to_task is not None) or (worst and from_task is not None):
        raise ConfigError("plan: expected either --to TASK, with or without --from TASK, or --worst alone")
    size, stated = stated_size(budget, "budget"), stated_size(rows, "rows")
    needs = needs_of(opened, rows=stated)
    slots = None if size is None else needs.split(size).slots
    fitting = [name for name in opened.tasks if slots is None or len(opened.pages_of(name)) <= slots]
    if size is not None and (to_task or not fitting):
        check_fits(opened, to_task or min(opened.tasks, key=lambda name: len(opened.pages_of(name))), size, rows=stated)
    costs = (
        _slowest(opened, fitting, model, slots)
        if to_task is None
        else [switch_cost(opened, from_task, to_task, model, slots)]
    )
    left_out = [name for name in opened.tasks if worst and name not in fitting]
    planned = [_PlannedSwitch.of(needs, cost, size) for cost in costs]
    if json:
        more = {"from_empty": planned[-1].plain(), "tasks_that_do_not_fit": left_out} if worst else {}
        output.print_json(planned[0].plain() | more)
        return
    for each in planned:
        _print(each, storage, read_latency)
    for name in left_out:
        output.say(f"note: {name} does not fit into the budget.")


def _slowest(bundle: Bundle, tasks: Sequence[str], model: StorageModel, slots: int | None) -> list[SwitchCost]:
    """The slowest switch between two of the tasks, if there are two; and the slowest one from an empty arena."""
    pairs = [switch_cost(bundle, a, b, model, slots) for a in tasks for b in tasks if a != b]
    starts = [switch_cost(bundle, None, name, model, slots) for name in tasks]
    return [max(costs, key=lambda cost: cost.most_seconds) for costs in (pairs, starts) if costs]


@dataclass(frozen=True)
class _PlannedSwitch:
    """A switch within a budget.

    Attributes:
        peak_bytes: that weights take at most.
        both_fit: whether the budget holds both tasks.
        row_bytes: what rows on demand get of the budget.
        feature_bytes: what pictures' features get of it; None where tasks read none.
    """

    cost: SwitchCost
    peak_bytes: int
    both_fit: bool
    row_bytes: int
    feature_bytes: int | None = None

    @classmethod
    def of(cls, needs: MemoryNeeds, cost: SwitchCost, budget: int | None) -> _PlannedSwitch:
        """Compare a switch with the budget; without one, both tasks fit."""
        both = needs.holding(cost.peak_pages).total
        limit = both if budget is None else budget
        features = needs.split(limit).features or None
        return cls(cost, min(both, limit), both <= limit, needs.rows(limit), features)

    def plain(self) -> dict[str, Any]:
        return {
            "from": self.cost.from_task,
            "to": self.cost.to_task,
            "pages": self.cost.pages,
            "bytes": self.cost.bytes,
            "reads": self.cost.reads,
            "predicted_ms": self.cost.seconds * 1e3,
            "at_most_ms": self.cost.most_seconds * 1e3,
            "peak_bytes": self.peak_bytes,
            "both_fit": self.both_fit,
            "row_bytes": self.row_bytes,
            **({} if self.feature_bytes is None else {"feature_bytes": self.feature_bytes}),
        }


def _print(planned: _PlannedSwitch, storage: str, read_latency: str) -> None:
    cost = planned.cost
    output.table(
        f"{cost.from_task or '(nothing in memory)'} → {cost.to_task}",
        ["", ""],
        [
            ["pages to load", cost.pages],
            ["bytes to load", f"{output.size(cost.bytes)} ({cost.bytes})"],
            ["reads", cost.reads],
            [
                f"predicted at {storage.strip().removesuffix('/s')}/s and {read_latency.strip()} a read",
                output.milliseconds(cost.seconds),
            ],
            ["at most, whatever else is in memory", output.milliseconds(cost.most_seconds)],
            ["peak memory for weights", output.enough(planned.peak_bytes)],
            ["both tasks fit" if cost.from_task else "it fits", planned.both_fit],
            *([["of the budget for rows", output.size(planned.row_bytes)]] if planned.row_bytes else []),
            *([["of the budget for pictures' features", output.size(size)]] if (size := planned.feature_bytes) else []),
        ],
    )

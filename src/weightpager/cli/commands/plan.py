"""``plan``: what a switch would load, or which one is slowest. It reads a bundle without torch and loads nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from weightpager.bundle import Bundle
from weightpager.cli import output
from weightpager.cli.commands.several_bundles import SeveralBundles
from weightpager.cli.options import Budget, BundlePaths, Json, Rows, Storage, task_names
from weightpager.config import parse_bandwidth, parse_latency, stated_size
from weightpager.errors import ConfigError
from weightpager.runtime.budget import MemoryNeeds, check_fits, needs_of
from weightpager.runtime.planning.shares import OPENING
from weightpager.store import StorageModel, SwitchCost, switch_cost


def plan(
    bundles: BundlePaths,
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

    Several bundles share the budget, and their tasks are named `bundle/task`, or `task` where one alone has it. A
    switch to another bundle reads all pages of its task, and opens that bundle where the budget may have had it sleep.

    Example: `weightpager plan assistant.bundle --from spam --to topic --storage 300MB/s`
    """
    model = StorageModel(parse_bandwidth(storage), parse_latency(read_latency, "--read-latency"))
    if worst == (to_task is not None) or (worst and from_task is not None):
        raise ConfigError("plan: expected either --to TASK, with or without --from TASK, or --worst alone")
    size, stated = stated_size(budget, "budget"), stated_size(rows, "rows")
    if len(bundles) > 1:
        if stated is not None:
            raise ConfigError("--rows: expected it for one bundle, found several; leave it out")
        planned, left_out = _plan_several(SeveralBundles(bundles), from_task, to_task, size, model)
    else:
        planned, left_out = _plan_one(Bundle.open(bundles[0]), from_task, to_task, size, stated, model)
    if json:
        more = {"from_empty": planned[-1].plain(), "tasks_that_do_not_fit": left_out} if worst else {}
        output.print_json(planned[0].plain() | more)
        return
    for each in planned:
        _print(each, storage, read_latency)
    for name in left_out:
        output.say(f"note: {name} does not fit into the budget.")


_Planned = tuple[Sequence["_PlannedSwitch"], Sequence[str]]
"""Switches, and tasks that were left out since they don't fit."""


def _plan_one(
    opened: Bundle, from_task: str | None, to_task: str | None, size: int | None, rows: int | None, model: StorageModel
) -> _Planned:
    """The switch to a task; without one the slowest one, and the slowest start."""
    needs = needs_of(opened, rows=rows)
    slots = None if size is None else needs.split(size).slots
    fitting = [name for name in opened.tasks if slots is None or len(opened.pages_of(name)) <= slots]
    if size is not None and (to_task or not fitting):
        check_fits(opened, to_task or min(opened.tasks, key=lambda name: len(opened.pages_of(name))), size, rows=rows)
    costs = (
        _slowest(opened, fitting, model, slots)
        if to_task is None
        else [switch_cost(opened, from_task, to_task, model, slots)]
    )
    left_out = [name for name in opened.tasks if to_task is None and name not in fitting]
    return [_PlannedSwitch.of(needs, cost, size) for cost in costs], left_out


def _plan_several(
    several: SeveralBundles, from_task: str | None, to_task: str | None, size: int | None, model: StorageModel
) -> _Planned:
    """As `_plan_one`, for tasks of several bundles."""
    fitting = several.fitting(size)
    if size is not None and (to_task or not fitting):
        owner, task = several.find(to_task or min(several.tasks, key=several.alone))
        check_fits(several.bundles[owner], task, size)
    if to_task is not None:
        left = None if from_task is None else "/".join(several.find(from_task))
        return [_between(several, left, "/".join(several.find(to_task)), size, model)], []
    pairs = [_between(several, a, b, size, model) for a, b in _pairs(several, fitting)]
    starts = [_between(several, None, name, size, model) for name in fitting]
    slowest = [max(each, key=lambda planned: planned.cost.most_seconds) for each in (pairs, starts) if each]
    return slowest, [name for name in several.tasks if name not in fitting]


def _pairs(several: SeveralBundles, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every switch inside of a bundle, and to each task one from another bundle: they all read the same."""
    owners = {name: several.find(name)[0] for name in tasks}
    for to_task in tasks:
        yield from ((name, to_task) for name in tasks if owners[name] == owners[to_task] and name != to_task)
        others = (name for name in tasks if owners[name] != owners[to_task])
        if (largest := max(others, key=several.alone, default=None)) is not None:
            yield largest, to_task


def _between(
    several: SeveralBundles, from_task: str | None, to_task: str, size: int | None, model: StorageModel
) -> _PlannedSwitch:
    """A switch between two tasks by their whole names, or the start of one."""
    owner, task = several.find(to_task)
    bundle, needs = several.bundles[owner], several.needs[owner]
    slots = None if size is None else needs.split(size).slots
    left = None if from_task is None else several.find(from_task)
    if left is not None and left[0] == owner:
        cost = switch_cost(bundle, left[1], task, model, slots)
        planned = _PlannedSwitch.of(needs, replace(cost, from_task=from_task, to_task=to_task), size)
        return replace(planned, waking_bytes=0)
    cost = switch_cost(bundle, None, task, model, slots)
    sleeps = left is None or (size is not None and size < several.bounds.without_sleep)
    waking = needs.waking if sleeps else 0
    more = OPENING + model.seconds(1, waking) if sleeps else 0.0
    cost = replace(
        cost,
        from_task=from_task,
        to_task=to_task,
        seconds=cost.seconds + more,
        most_seconds=cost.most_seconds + more,
    )
    both = several.alone(to_task) + (0 if from_task is None else several.alone(from_task))
    limit = both if size is None else size
    alone = _PlannedSwitch.of(needs, cost, size)
    return replace(alone, peak_bytes=min(both, limit), both_fit=both <= limit, waking_bytes=waking)


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
        waking_bytes: what is read beside pages where the task's bundle slept; None of a single bundle.
    """

    cost: SwitchCost
    peak_bytes: int
    both_fit: bool
    row_bytes: int
    feature_bytes: int | None = None
    waking_bytes: int | None = None

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
            **({} if self.waking_bytes is None else {"waking_bytes": self.waking_bytes}),
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
            *([["bytes to wake its bundle", output.size(size)]] if (size := planned.waking_bytes) else []),
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

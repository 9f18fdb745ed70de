"""Several bundles that share a budget: what `inspect` shows of them, and `plan` and `simulate` go by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weightpager.bundle import Bundle
from weightpager.cli import output
from weightpager.config import format_room
from weightpager.runtime.budget import MemoryNeeds, needs_of
from weightpager.runtime.shared_budget import find_task, named
from weightpager.runtime.sharing import Bounds, SharedBounds


class SeveralBundles:
    """The bundles, and what they take of the budget.

    Attributes:
        bundles: by name.
        needs: of each bundle.
        bounds: of each, and of all together.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open them. Errors are those of `named`, and of `Bundle.open`."""
        self.bundles = {name: Bundle.open(path) for name, path in named(paths).items()}
        self.needs: dict[str, MemoryNeeds] = {name: needs_of(bundle) for name, bundle in self.bundles.items()}
        self.bounds = SharedBounds({name: Bounds.of(bundle, self.needs[name]) for name, bundle in self.bundles.items()})

    @property
    def tasks(self) -> list[str]:
        """All tasks by their whole names."""
        return [f"{name}/{task}" for name, bundle in self.bundles.items() for task in bundle.tasks]

    @property
    def short_names(self) -> dict[str, str]:
        """The whole name of each task that one bundle alone has, by its short one."""
        having = Counter(task for bundle in self.bundles.values() for task in bundle.tasks)
        wholes = ((whole.partition("/")[2], whole) for whole in self.tasks)
        return {task: whole for task, whole in wholes if having[task] == 1}

    def find(self, name: str) -> tuple[str, str]:
        """The bundle and the task that a name means. Errors are those of `find_task`."""
        return find_task(name, {owner: bundle.tasks for owner, bundle in self.bundles.items()})

    def alone(self, name: str) -> int:
        """Bytes that hold a task, by its whole name, beside nothing."""
        owner, task = self.find(name)
        return self.bounds.bundles[owner].alone[task]

    def fitting(self, budget: int | None) -> list[str]:
        """Whole names of the tasks that a budget holds; None holds all."""
        return [name for name in self.tasks if budget is None or self.alone(name) <= budget]


@dataclass(frozen=True)
class _Taken:
    """What one of the bundles takes of the budget, in bytes.

    Attributes:
        asleep_bytes: while it sleeps.
        smallest_bytes, largest_bytes: awake, with its smallest and with its largest task.
        everything_bytes: what it can use.
        waking_bytes: that are read when it wakes, before any page.
    """

    bundle: str
    tasks: int
    pages: int
    page_bytes: int
    smallest_bytes: int
    largest_bytes: int
    everything_bytes: int
    waking_bytes: int
    asleep_bytes: int = 0

    @classmethod
    def of(cls, name: str, several: SeveralBundles) -> _Taken:
        bundle, needs, bounds = several.bundles[name], several.needs[name], several.bounds.bundles[name]
        sizes = bounds.kept, bounds.least, bounds.most, needs.waking
        return cls(name, len(bundle.tasks), needs.pages, needs.page_bytes, *sizes)


def inspect_several(paths: Sequence[Path], budget: int | None, *, json: bool) -> None:
    """Print what each bundle takes, and what budgets hold of all."""
    several = SeveralBundles(paths)
    bounds, taken = several.bounds, [_Taken.of(name, several) for name in several.bundles]
    fitting = {*several.fitting(budget)}
    left_out = [name for name in several.tasks if name not in fitting]
    if json:
        output.print_json(
            {
                "bundles": taken,
                "smallest_budget": bounds.smallest,
                "all_awake_budget": bounds.all_awake,
                "without_sleep_budget": bounds.without_sleep,
                "largest_budget": bounds.everything,
                "budget": budget,
                "tasks_that_do_not_fit": left_out,
            }
        )
        return
    output.table(
        f"{len(taken)} bundles under one budget",
        ["bundle", "tasks", "pages", "of", "smallest task", "largest task", "everything", "read to wake"],
        [
            [each.bundle, each.tasks, each.pages, output.size(each.page_bytes)]
            + [output.enough(size) for size in (each.smallest_bytes, each.largest_bytes, each.everything_bytes)]
            + [output.size(each.waking_bytes)]
            for each in taken
        ],
    )
    output.say("asleep, a bundle takes nothing of the budget")
    sizes = {
        "every task runs; other bundles may have to sleep": bounds.smallest,
        "all bundles are awake, each with its smallest task": bounds.all_awake,
        "every task runs, and no bundle ever sleeps": bounds.without_sleep,
        "everything: switches read nothing": bounds.everything,
    }
    holds = [] if budget is None else [f"{format_room(budget)} is enough"]
    rows = [[what, output.enough(size), *([] if budget is None else [budget >= size])] for what, size in sizes.items()]
    output.table("budgets", ["", "smallest", *holds], rows)
    for name in left_out:
        output.say(f"note: {name} does not fit into the budget.")

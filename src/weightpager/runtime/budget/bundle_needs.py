"""What a bundle asks of a budget, and which budgets hold one task of it, or all."""

from __future__ import annotations

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint, whole_rows
from weightpager.config import format_enough, format_room
from weightpager.errors import BudgetError
from weightpager.runtime.budget.needs import Needs


def needs_of(bundle: Bundle, dtype: str = "auto", rows: int | None = None) -> Needs:
    """What a bundle asks of a budget, for tasks that compute in a dtype, and rows, of `EngineConfig`.

    Raises:
        BundleFormatError: a parameter file is damaged.
    """
    always = footprint(bundle, dtype, rows)
    return Needs(
        pages=len(bundle.pages),
        least_pages=min(len(bundle.pages_of(name)) for name in bundle.tasks),
        page_bytes=bundle.page_bytes,
        footprint=always,
        more_rows=whole_rows(bundle) - always.rows if rows is None else 0,
    )


def smallest_budget(bundle: Bundle, task: str | None = None, dtype: str = "auto", rows: int | None = None) -> int:
    """Bytes that hold what is always in memory and the pages of one task; by default of the largest task."""
    most = max(len(bundle.pages_of(name)) for name in ([task] if task else bundle.tasks))
    return needs_of(bundle, dtype, rows).holding(most).total


def largest_budget(bundle: Bundle) -> int:
    """Bytes that an engine without a budget takes: with all pages, all rows, and the tables of all tasks expanded."""
    return needs_of(bundle, rows=whole_rows(bundle)).holding_all().total


def check_fits(bundle: Bundle, task: str, budget: int, dtype: str = "auto", rows: int | None = None) -> None:
    """Refuse a budget, in bytes, that is too small for a task.

    Raises:
        BudgetError: it is too small; the message says the smallest budget that would do.
    """
    least = smallest_budget(bundle, task, dtype, rows)
    if budget < least:
        cannot = f"{task!r} does not fit into {format_room(budget)}"
        raise BudgetError(
            f"{cannot}; the smallest budget that would do is {least} bytes ({format_enough(least)})", least
        )

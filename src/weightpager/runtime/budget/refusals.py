"""What is said where a budget is too small: what takes how much, and the smallest that would do."""

from __future__ import annotations

from weightpager.config import format_enough, format_room
from weightpager.errors import BudgetError
from weightpager.runtime.budget.needs import Needs


def too_small(needs: Needs, what: str, pages: int, budget: int, *, tables: int = 0) -> BudgetError:
    """The error for a budget that doesn't hold something.

    Args:
        needs: of the bundle.
        what: is to be held, for the message.
        pages: that it takes at once.
        budget: bytes.
        tables: bytes of expanded block tables that tasks in use take with it.
    """
    cannot = f"a budget of {format_room(budget)} ({budget} bytes) is too small. "
    return refusal(cannot, needs, what, pages, tables=tables)


def refusal(reason: str, needs: Needs, what: str, pages: int, *, tables: int = 0) -> BudgetError:
    """An error that begins with a reason and goes on with what is needed. Other arguments are those of `too_small`."""
    least = needs.holding(pages, tables=tables)
    of_pages = pages * needs.page_bytes
    extra = {"KV caches": needs.kv_reserve, "staging": needs.staging, "rows": least.rows}
    parts = [f"{format_enough(size)} for {purpose}" for purpose, size in extra.items() if size]
    more = f" (with {', '.join(parts)})" if parts else ""
    return BudgetError(
        f"{reason}To hold {what} takes {format_enough(least.total - of_pages)} for resident and private parameters and "
        f"tables{more}, and {format_enough(of_pages)} for {pages} pages. "
        f"The smallest budget that would do is {enough(needs, pages, tables=tables)}.",
        least.total,
    )


def enough(needs: Needs, pages: int, *, tables: int = 0) -> str:
    """The smallest budget that holds so many pages at once, in words."""
    least = needs.holding(pages, tables=tables).total
    return f"{least} bytes ({format_enough(least)})"

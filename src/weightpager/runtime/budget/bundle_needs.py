"""What a bundle asks of a budget."""

from __future__ import annotations

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.runtime.budget.needs import Needs
from weightpager.runtime.budget.row_share import NO_MORE_ROWS, row_share


def needs_of(bundle: Bundle, dtype: str = "auto", rows: int | None = None) -> Needs:
    """What a bundle asks of a budget, for tasks that compute in a dtype, and rows, of `EngineConfig`."""
    return Needs(
        pages=len(bundle.pages),
        least_pages=min(len(bundle.pages_of(name)) for name in bundle.tasks),
        page_bytes=bundle.page_bytes,
        footprint=footprint(bundle, dtype, rows),
        more_rows=row_share(bundle) if rows is None else NO_MORE_ROWS,
    )

"""The engine that a verb runs tasks on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.cli import output
from weightpager.config import parse_size, stated_size
from weightpager.errors import BudgetError
from weightpager.runtime.budget.bundle_needs import check_fits

if TYPE_CHECKING:
    from weightpager.engine import Engine


def opened(
    bundle: Path, tasks: Sequence[str], budget: str | None, dtype: str, rows: str | None, backend: str
) -> Engine:
    """An engine. If the budget holds no task at all, the error tells what the first of the wanted tasks needs."""
    from weightpager.engine import Engine

    try:
        engine = Engine.from_pretrained(bundle, budget=budget, rows=rows, dtype=dtype, backend=backend)
    except BudgetError:
        if budget is not None:
            found = Bundle.open(bundle)
            for task in tasks or found.tasks:
                check_fits(found, task, parse_size(budget), dtype, stated_size(rows, "rows"))
        raise
    stated = stated_size(rows, "rows")
    if stated is not None:
        _note_few_rows(engine.bundle, stated)
    return engine


def _note_few_rows(bundle: Bundle, stated: int) -> None:
    least = footprint(bundle).rows
    if stated < least:
        usual = f"the least that they get where none are stated, {output.enough(least)}"
        output.hint(f"note: --rows {output.size(stated)} is less than {usual}: texts will read more from storage")

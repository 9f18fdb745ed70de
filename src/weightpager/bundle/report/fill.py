"""How well a bundle's pages are used."""

from __future__ import annotations

import numpy as np

from weightpager.bundle.reader import Bundle


def page_fill(bundle: Bundle) -> float:
    """Share of the pages' bytes that some task uses."""
    used = int(np.count_nonzero(bundle.placement.users()))
    return used * bundle.block_bytes / max(1, len(bundle.pages) * bundle.page_bytes)


def over_read(bundle: Bundle) -> dict[str, float]:
    """Per task: the share of its pages' bytes that it doesn't use; 0 without pages."""
    return {task: _over_read(bundle, task) for task in bundle.tasks}


def _over_read(bundle: Bundle, task: str) -> float:
    loaded = len(bundle.pages_of(task)) * bundle.page_bytes
    return 1.0 - len(bundle.kept_locations(task)) * bundle.block_bytes / loaded if loaded else 0.0

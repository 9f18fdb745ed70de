"""Where pages come from: the smallest interface; a wrapper checks and counts what is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class PageStore(Protocol):
    """Reads pages. Safe to call from several threads at once."""

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        """Fill each view, one page long, with pages ``first``, ``first + 1`` and so on.

        The pages must lie one behind the other in storage: `span` says how far. When this raises, the views hold
        nothing that may be used.

        Raises:
            StoreError: the storage failed, or gave fewer bytes.
            PageCorruptError: a checking store found a page that doesn't match its id.
        """

    def span(self, first: int) -> int:
        """How many pages, from ``first`` on, one `read` can cover."""

    def close(self) -> None:
        """Give back descriptors; closing twice is fine."""

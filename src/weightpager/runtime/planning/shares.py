"""How bundles share one budget: whose memory goes to the bundle that wants more. Arithmetic alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Holding:
    """What a bundle has of the budget.

    Attributes:
        share: bytes, its part of the budget.
        spare: bytes of them that hold no page: rows and features beyond the least, and rests.
        page_bytes: bytes of a page.
        free: slots that hold no page, and may go.
        worths: expected uses of each page that may go, ascending.
    """

    share: int
    spare: int
    page_bytes: int
    free: int
    worths: npt.NDArray[np.float64]

    @property
    def least(self) -> int:
        """Bytes that it can't give away."""
        return self.share - self.spare - (self.free + len(self.worths)) * self.page_bytes


@dataclass(frozen=True)
class Wish:
    """What a bundle wants for a task.

    Attributes:
        least: bytes that hold the task beside those in use.
        most: bytes with which no page must go for it.
    """

    least: int
    most: int


def plan_shares(wanting: str, wish: Wish, holdings: Mapping[str, Holding], budget: int) -> dict[str, int] | None:
    """The bundles' shares with which one of them can hold a task; None if its least can't be had.

    First goes what nobody has, then what holds no page, then pages: those of the least expected uses first, whichever
    bundle they belong to. Pages cost their bytes to read again, so that uses are what a byte is worth. Where a page of
    the wanting bundle itself is worth least, its share grows by a page less. No share shrinks but those of others.

    Args:
        wanting: the bundle.
        wish: what it wants.
        holdings: by bundle; their shares are at most ``budget`` together.
        budget: bytes.
    """
    shares = {name: holding.share for name, holding in holdings.items()}
    others = [name for name in holdings if name != wanting]
    lacking = wish.most - shares[wanting] - (budget - sum(shares.values()))
    for name in others:
        taken = min(max(0, lacking), holdings[name].spare)
        shares[name] -= taken
        lacking -= taken
    own = wish.most - wish.least  # bytes of pages that may go where the task comes
    for name in _cheapest_first(holdings, wanting):
        if lacking <= 0:
            break
        size = holdings[name].page_bytes
        if name != wanting:
            shares[name] -= size
        elif size > own:
            continue
        else:
            own -= size
        lacking -= size
    left = budget - sum(shares[name] for name in others)
    shares[wanting] = max(shares[wanting], min(wish.most, left))
    return None if shares[wanting] < wish.least else shares


def _cheapest_first(holdings: Mapping[str, Holding], wanting: str) -> list[str]:
    """The bundle of each free slot, and then of each page that may go. Its own free slots the bundle has already."""
    names = list(holdings)
    free = [name for name in names if name != wanting for _ in range(holdings[name].free)]
    owners = np.repeat(np.arange(len(names)), [len(holdings[name].worths) for name in names])
    order = np.argsort(np.concatenate([holdings[name].worths for name in names]), kind="stable")
    return free + [names[owner] for owner in owners[order].tolist()]

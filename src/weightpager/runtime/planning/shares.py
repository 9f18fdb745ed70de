"""How bundles share one budget: whose memory goes to the bundle that wants more. Arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.prefetch_planner import MARGIN

OPENING = 0.03
"""Seconds that waking a bundle takes, beside reading its own: 0.006 of a small encoder, 0.03 of SmolLM2."""

WAKING = 9 * 2**20
"""Bytes that could be read in this time, at 300 MB/s."""


@dataclass(frozen=True, eq=False)
class Holding:
    """What a bundle has of the budget.

    Attributes:
        share: bytes, its part of the budget; 0 of one that sleeps.
        spare: bytes of them that hold no page: rows and features beyond the least, and rests.
        page_bytes: bytes of a page.
        free: slots that hold no page, and may go.
        worths: expected uses of each page that may go, ascending.
        uses: expected uses of its tasks together, if the bundle may go to sleep; None where it must stay awake.
    """

    share: int
    spare: int
    page_bytes: int
    free: int
    worths: npt.NDArray[np.float64]
    uses: float | None = None

    @property
    def least(self) -> int:
        """Bytes that it keeps as long as it is awake."""
        return self.share - self.spare - (self.free + len(self.worths)) * self.page_bytes

    def lost(self, share: int) -> float:
        """Bytes times expected uses of what goes where the share shrinks to ``share``; 0 where it doesn't shrink."""
        if self.share and not share and self.uses is not None:
            return float(self.worths.sum()) * self.page_bytes + self.uses * (self.least + WAKING)
        pages = -(-(self.share - share - self.spare) // self.page_bytes) - self.free
        return float(self.worths[: max(0, pages)].sum()) * self.page_bytes

    @property
    def as_it_stays(self) -> Holding:
        """This, of a bundle that must stay awake."""
        return replace(self, uses=None)


NOTHING = Holding(0, 0, 1, 0, np.zeros(0))
"""What one has of a budget that sleeps."""


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

    Only where that isn't enough does what a bundle keeps besides go among the pages, by the uses of all its tasks, and
    the bundle to sleep: it leaves far more than a task lacks. Waking takes the time of `WAKING` bytes more.

    Args:
        wanting: the bundle.
        wish: what it wants.
        holdings: by bundle; their shares are at most ``budget`` together.
        budget: bytes.

    Returns:
        Bytes by bundle; 0 for one that goes to sleep.
    """
    awake = {name: holding.as_it_stays for name, holding in holdings.items()}
    return _plan(wanting, wish, awake, budget) or _plan(wanting, wish, holdings, budget)


def _plan(wanting: str, wish: Wish, holdings: Mapping[str, Holding], budget: int) -> dict[str, int] | None:
    """The shares, where all that may sleep is weighed with the pages."""
    shares = {name: holding.share for name, holding in holdings.items()}
    others = [name for name in holdings if name != wanting]
    lacking = wish.most - shares[wanting] - (budget - sum(shares.values()))
    for name in others:
        taken = min(max(0, lacking), holdings[name].spare)
        shares[name] -= taken
        lacking -= taken
    own = wish.most - wish.least  # bytes of pages that may go where the task comes
    gone: list[_Piece] = []
    for piece in _cheapest_first(holdings, wanting):
        if lacking <= 0:
            break
        if piece.owner != wanting:
            shares[piece.owner] -= piece.size
            gone.append(piece)
        elif piece.size > own:
            continue
        else:
            own -= piece.size
        lacking -= piece.size
    _return_pages(shares, gone, -lacking)
    left = budget - sum(shares[name] for name in others)
    shares[wanting] = max(shares[wanting], min(wish.most, left))
    return None if shares[wanting] < wish.least else shares


def plan_ahead(
    wanting: str, wanted: npt.NDArray[np.floating], holdings: Mapping[str, Holding], budget: int
) -> dict[str, int] | None:
    """The shares with which a bundle holds more pages ahead of time; None if none is worth what would go for it.

    No bundle goes to sleep for them, and none of the wanting bundle's own pages goes; nor do rows and features, which
    answers would have to read or compute again.

    Args:
        wanting: the bundle, which is awake.
        wanted: expected uses of the pages that it lacks, descending.
        holdings: by bundle.
        budget: bytes.
    """
    own = replace(holdings[wanting].as_it_stays, worths=np.zeros(0))
    others = {name: replace(each.as_it_stays, spare=0) for name, each in holdings.items() if name != wanting}
    free = budget - own.share - sum(each.share for each in others.values())
    worths = np.concatenate([np.zeros(0), *(np.pad(each.worths, (each.free, 0)) for each in others.values())])
    sizes = np.repeat(
        [each.page_bytes for each in others.values()], [each.free + len(each.worths) for each in others.values()]
    )
    order = np.argsort(worths, kind="stable")
    there = free + np.cumsum(sizes[order])  # bytes, once this page and those that are worth less have gone
    needed = own.page_bytes * np.arange(1, len(wanted) + 1)
    last = np.searchsorted(there, needed)  # what goes last for each page
    costs = np.where(needed <= free, 0.0, np.append(worths[order], np.inf)[last])
    pages = int(np.argmin(np.append(wanted > (1 + MARGIN) * costs, False)))
    if not pages:
        return None
    size = own.share + pages * own.page_bytes
    return _plan(wanting, Wish(size, size), {**others, wanting: own}, budget)


def spread(shares: Mapping[str, int], most: Mapping[str, int], budget: int) -> dict[str, int]:
    """Shares of those who are awake, each with a part of what nobody has, as large as what it could use of it.

    Args:
        shares: bytes by bundle, 0 of those who sleep, which they go on to do.
        most: bytes that each could use.
        budget: bytes.
    """
    more = {name: max(0, most[name] - share) if share else 0 for name, share in shares.items()}
    rest, wanted = max(0, budget - sum(shares.values())), max(1, sum(more.values()))
    return {name: share + min(more[name], rest * more[name] // wanted) for name, share in shares.items()}


@dataclass(frozen=True)
class _Piece:
    """A page's slot, or with ``sleeps`` all that a bundle keeps besides, in bytes."""

    owner: str
    size: int
    sleeps: bool = False


def _cheapest_first(holdings: Mapping[str, Holding], wanting: str) -> list[_Piece]:
    """Free slots, and then all that may go by its worth. Its own free slots the bundle has already.

    What a bundle keeps besides its pages comes behind all of them, as its tasks together are used as often at least.
    """
    pieces: list[_Piece] = []
    worths: list[float] = []
    for name, holding in holdings.items():
        page = _Piece(name, holding.page_bytes)
        free = holding.free if name != wanting else 0
        pieces += [page] * (free + len(holding.worths))
        worths += [-1.0] * free + holding.worths.tolist()
        if name != wanting and holding.share and holding.uses is not None:
            pieces.append(_Piece(name, holding.least, sleeps=True))
            worth = holding.uses * (1 + WAKING / max(1, holding.least))
            worths.append(max([worth, *holding.worths[-1:].tolist()]))
    return [pieces[place] for place in np.argsort(worths, kind="stable").tolist()]


def _return_pages(shares: dict[str, int], gone: Iterable[_Piece], surplus: int) -> None:
    """Give back pages that needn't go after all, since a bundle that went to sleep left more than was lacking."""
    gone = list(gone)
    asleep = {piece.owner for piece in gone if piece.sleeps}
    for piece in reversed(gone):  # the worthiest first
        if piece.owner not in asleep and piece.size <= surplus:
            shares[piece.owner] += piece.size
            surplus -= piece.size

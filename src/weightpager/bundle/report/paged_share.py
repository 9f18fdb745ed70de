"""How much of a model is paged: what sparsity, pages and switches are about; and what the rest is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from weightpager.bundle.files.tensor_file import read_header
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.bundle.format.whole_weight import stored_in
from weightpager.bundle.reader import Bundle

_SMALL = "norms, biases and other vectors"
_ROWS = "embedding rows, which come on demand"
_MOST_NAMED = 3


@dataclass(frozen=True)
class PagedShare:
    """Parameter counts of the task that has the most.

    Attributes:
        paged: parameters in paged weights, dropped blocks included.
        others: parameters that stay in memory, by why they aren't paged; the largest number first.
    """

    paged: int
    others: Mapping[str, int]

    @classmethod
    def of(cls, paged: Iterable[int], others: Mapping[str, int], reasons: Mapping[str, str]) -> PagedShare:
        """Count them.

        Args:
            paged: the elements of each paged weight.
            others: the elements of every other parameter, by name.
            reasons: why matrices aren't paged, by name.
        """
        found: Counter[str] = Counter()
        for name, count in others.items():
            found[reasons.get(name, _SMALL)] += count
        return cls(sum(paged), dict(found.most_common()))

    @property
    def share(self) -> float:
        """The paged share of all parameters, from 0 to 1."""
        return self.paged / max(1, self.paged + sum(self.others.values()))

    @property
    def is_small(self) -> bool:
        """Whether most of a model stays in memory whatever is paged."""
        return self.share < 0.5

    @property
    def words(self) -> str:
        """The share in words; where it is small, also the largest parts of what stays in memory."""
        said = f"{self.share:.1%} of the parameters"
        if not self.is_small:
            return said
        every = max(1, self.paged + sum(self.others.values()))
        named = [f"{count / every:.1%} {why}" for why, count in list(self.others.items())[:_MOST_NAMED]]
        stays = "what isn't paged or on demand stays" if _ROWS in self.others else "the rest stays"
        rest = f"only these become sparse, and {stays} in memory for all tasks"
        return f"{said}, less than half: {rest}: {'; '.join(named)}"


def paged_share(bundle: Bundle) -> PagedShare:
    """What a bundle pages of its model.

    Raises:
        BundleFormatError: a parameter file is damaged.
    """
    resident = _counts(bundle, RESIDENT)
    private = max((_counts(bundle, private_file(task)) for task in bundle.tasks), key=lambda own: sum(own.values()))
    paged = (weight.out_features * weight.in_features for weight in bundle.manifest.weights)
    tables = {table.name: table.rows * table.columns for table in bundle.manifest.row_tables}
    reasons = {**bundle.manifest.resident_reasons, **dict.fromkeys(tables, _ROWS)}
    return PagedShare.of(paged, tables | resident | private, reasons)


def _counts(bundle: Bundle, file: str) -> dict[str, int]:
    header = read_header(bundle.path, file, bundle.entry(file))
    whole = {entry.name: entry.rows * entry.columns for entry in stored_in(header, bundle.manifest.whole_weights)}
    return {name: math.prod(stated.shape) for name, stated in header.items()} | whole

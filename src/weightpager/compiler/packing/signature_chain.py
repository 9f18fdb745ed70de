"""The order in which blocks of different signatures follow each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CHAINED = 4096
"""Signatures that are put into a chain: all that twelve tasks can make."""

Signatures = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SignatureChain:
    """Signatures in an order in which neighbours are similar.

    Along it every task's signatures should form few runs, since each run is a read. A run begins where a task's bit
    turns on, so the chain goes to the nearest signature by Hamming distance, from the set of the most tasks on. That
    takes time with the square of the signatures; of many, neighbours in Gray's code are similar enough.

    Attributes:
        signatures: uint64 [signatures], ascending.
        places: int64 [signatures], the place of each along the chain.
    """

    signatures: Signatures
    places: npt.NDArray[np.int64]

    @classmethod
    def of(cls, signatures: Signatures) -> SignatureChain:
        """The chain of the different signatures among these."""
        present = np.unique(signatures)
        if len(present) > _CHAINED:
            return cls(present, np.argsort(np.argsort(_gray(present))))
        rest = sorted((int(signature) for signature in present), key=lambda s: (-s.bit_count(), s))
        chain = rest[:1]
        rest = rest[1:]
        while rest:
            nearest = min(rest, key=lambda s: (s ^ chain[-1]).bit_count())
            rest.remove(nearest)
            chain.append(nearest)
        return cls(present, np.argsort(np.searchsorted(present, np.array(chain, np.uint64))))

    def positions(self, signatures: Signatures) -> npt.NDArray[np.int64]:
        """The place of each of these signatures along the chain; the chain has them all."""
        return np.asarray(self.places[np.searchsorted(self.signatures, signatures)])


def _gray(signatures: Signatures) -> Signatures:
    """Each signature's position among all 2^64 in the order of Gray's code, in which neighbours differ in one bit."""
    positions = signatures.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        positions ^= positions >> np.uint64(shift)
    return np.asarray(positions, np.uint64)

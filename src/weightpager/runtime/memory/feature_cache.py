"""`FeatureCache`: what a picture tower made of pictures, kept for the next questions about them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from weightpager.figures import counter, gauge
from weightpager.interrupts import acquired, uninterrupted
from weightpager.runtime.bracket import bracket

Features = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeatureReport:
    """Features of pictures that are kept for further questions.

    Attributes:
        kept: pictures whose features are in memory.
        bytes: bytes that these take.
        hits: pictures that were asked for and had been kept.
        misses: pictures that were computed.
        evicted: pictures whose features went for others, or for a smaller budget.
    """

    kept: int = field(metadata=gauge("features", "Pictures whose features are in memory."))
    bytes: int = field(metadata=gauge("feature_bytes", "Memory that they take."))
    hits: int = field(metadata=counter("feature_hits", "Pictures that were asked for and had been kept."))
    misses: int = field(metadata=counter("feature_misses", "Pictures that were computed."))
    evicted: int = field(metadata=counter("feature_evictions", "Pictures whose features went for others."))


@dataclass(eq=False)
class _Turn:
    """The computing of one key's features, and how many threads compute or wait for them."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: int = 0


class FeatureCache:
    """An LRU cache of features by key, in so many bytes. What comes out of it is what was computed, bit for bit.

    Safe to use from several threads: those that ask for the same features at once have them computed once.
    """

    def __init__(self, room: int) -> None:
        """Nothing is kept; ``room`` is the bytes that features may take."""
        self._room = room
        self._lock = threading.Lock()  # never held while features are computed
        self._here: OrderedDict[Hashable, Features] = OrderedDict()  # the least recently used first
        self._turns: dict[Hashable, _Turn] = {}
        self._bytes = self._hits = self._misses = self._evicted = 0
        self._generation = 0

    @property
    def room(self) -> int:
        """Bytes that features may take."""
        return self._room

    @property
    def report(self) -> FeatureReport:
        with uninterrupted, acquired(self._lock):
            return FeatureReport(len(self._here), self._bytes, self._hits, self._misses, self._evicted)

    def get(self, key: Hashable, compute: Callable[[], Features]) -> Features:
        """The features of a key, which nobody may change.

        Where ``compute`` raises, that is raised, and others who waited for it compute themselves. It may not ask the
        cache for anything.
        """
        if (found := self._find(key)) is not None:
            return found
        with self._turn(key):
            if (found := self._find(key)) is not None:  # another thread had the turn before
                return found
            generation = self._generation
            features = np.array(compute(), np.float32)  # a copy, which keeps nothing else of the computation in memory
            features.flags.writeable = False
            self._keep(key, features, generation)
            return features

    @uninterrupted
    def resize(self, room: int) -> None:
        """Have another size; what has no room any more goes, the least recently used first."""
        with acquired(self._lock):
            self._room = room
            self._shrink(room)

    @uninterrupted
    def clear(self) -> None:
        """Forget everything, also what is being computed: the model may be another one from now on."""
        with acquired(self._lock):
            self._generation += 1
            self._here.clear()
            self._bytes = 0

    @bracket
    def _turn(self, key: Hashable) -> Iterator[None]:
        """Wait until no other thread computes this key."""
        with acquired(self._lock):
            turn = self._turns.setdefault(key, _Turn())
            turn.threads += 1
        try:
            with acquired(turn.lock):
                yield
        finally:
            with acquired(self._lock):
                turn.threads -= 1
                if not turn.threads:
                    del self._turns[key]

    @uninterrupted
    def _find(self, key: Hashable) -> Features | None:
        with acquired(self._lock):
            found = self._here.get(key)
            if found is not None:
                self._here.move_to_end(key)
                self._hits += 1
            return found

    @uninterrupted
    def _keep(self, key: Hashable, features: Features, generation: int) -> None:
        with acquired(self._lock):
            self._misses += 1
            if generation != self._generation or features.nbytes > self._room:
                return
            self._shrink(self._room - features.nbytes)
            self._here[key] = features
            self._bytes += features.nbytes

    def _shrink(self, size: int) -> None:
        while self._bytes > size:
            _, gone = self._here.popitem(last=False)
            self._bytes -= gone.nbytes
            self._evicted += 1

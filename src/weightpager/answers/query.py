"""Queries that wait for an answer, and runs that compute a batch of them in steps, so that others have turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from weightpager.answers.model import Integers
from weightpager.answers.work import Logprobs, Outcome, Work
from weightpager.errors import BusyError
from weightpager.readers.tokenizer import Tokenizer


class Query(Protocol):
    """Work on one text or image that somebody waits for. Its methods return at once."""

    @property
    def work(self) -> Work:
        """What the text or image is read for."""

    @property
    def cached(self) -> bool:
        """Whether the text is read in pieces, and a cache kept between them; else it is read at once."""

    @property
    def over(self) -> bool:
        """Whether it has ended, and whoever waited has been told."""

    def expire(self, now: float) -> bool:
        """End the query if it was cancelled or is late, by `time.monotonic`; whether it has ended."""

    def more(self, text: str, logprobs: Logprobs = ()) -> None:
        """Tell whoever waits the next piece of a continuation, with its tokens where they are asked for."""

    def fail(self, error: Exception) -> None:
        """End the query with an error."""

    def done(self, outcome: Outcome) -> None:
        """End the query with its outcome."""


@dataclass
class BlockingQuery:
    """A query whose caller waits for the whole result. Implements `Query`."""

    work: Work
    cached: bool = False
    outcome: Outcome | None = None

    @property
    def over(self) -> bool:
        return self.outcome is not None

    def expire(self, now: float) -> bool:  # noqa: ARG002 - whatever the time
        return self.over

    def more(self, text: str, logprobs: Logprobs = ()) -> None: ...

    def fail(self, error: Exception) -> None:
        raise error

    def done(self, outcome: Outcome) -> None:
        self.outcome = outcome


@dataclass
class StreamedQuery(BlockingQuery):
    """A query whose caller takes a continuation piece by piece.

    Attributes:
        pieces: what may be shown and hasn't been taken.
    """

    pieces: list[str] = field(default_factory=list)

    def more(self, text: str, logprobs: Logprobs = ()) -> None:  # noqa: ARG002 - which nobody asks for
        self.pieces.append(text)

    def take(self) -> list[str]:
        """The pieces since it was last asked."""
        taken, self.pieces = self.pieces, []
        return taken


def compiled_anew(task: str) -> BusyError:
    """The error of a query that began before its task was replaced."""
    return BusyError(f"task {task!r} was compiled anew meanwhile; ask again")


class Run(Protocol):
    """What a batch of queries computes, in one or more steps."""

    def step(self, until: float) -> int:
        """Compute one forward, and more until a time by `time.monotonic`; how many tokens were generated.

        The module's task is active. Queries that nobody waits for any more end.
        """


def padded(texts: Sequence[Sequence[int]], pad: int, *, left: bool = False) -> dict[str, Integers]:
    """``input_ids`` and ``attention_mask``, int64 [texts, longest]."""
    mask = padded_rows([[1] * len(ids) for ids in texts], 0, left=left)
    return {"input_ids": padded_rows(texts, pad, left=left), "attention_mask": mask}


def padded_rows(rows: Sequence[Sequence[int]], fill: int, *, left: bool = False) -> Integers:
    """Rows as int64 [rows, longest]; shorter ones are filled on the right, or on the left."""
    longest = max(map(len, rows))
    array = np.full((len(rows), longest), fill, np.int64)
    for place, row in enumerate(rows):
        start = longest - len(row) if left else 0
        array[place, start : start + len(row)] = row
    return array


def pad_id(vocab_size: int, tokenizer: Tokenizer) -> int:
    """A token id to pad with. Padding is masked, so any id that the model has will do."""
    named = (tokenizer.pad_id, tokenizer.end_id)
    # Tokenizers are given padding tokens that nobody has told the model of.
    return next((number for number in named if number is not None and number < vocab_size), 0)

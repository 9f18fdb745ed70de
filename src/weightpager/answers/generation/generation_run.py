"""A batch of prompts that is continued in steps, each text ending on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from weightpager.answers.generation.continuation import Continuation
from weightpager.answers.generation.continued_text import decoder_after
from weightpager.answers.model import Integers, TaskModel
from weightpager.answers.padded import pad_id, padded
from weightpager.answers.query import Query
from weightpager.answers.work import Generate
from weightpager.readers.tokenizer import Tokenizer


class GenerationRun:
    """Continues prompts that can run together. Implements `Run`.

    A query that nobody waits for any more ends after the token or the piece of its prompt that is being computed.
    """

    def __init__(
        self,
        model: TaskModel,
        tokenizer: Tokenizer,
        queries: Sequence[Query],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing has been read; ``tokenizer`` is the calling thread's own."""
        self._rows = [_Row(query, model, tokenizer) for query in queries]
        works = [row.work for row in self._rows]
        pad = pad_id(model.vocab_size, tokenizer)
        batch = padded([work.ids for work in works], pad, left=True)
        most = max(work.max_new_tokens for work in works)
        self._texts = model.grow(batch["input_ids"], batch["attention_mask"], works[0].sampling, pad, most)
        self._clock = clock
        self._grown = 0

    def step(self, until: float) -> int:
        """Read more of the prompts, or generate more, until a time; how many tokens were generated."""
        left = self._forget()
        while left and self._texts.unread:
            self._texts.read_piece()
            left = self._forget()
            if self._clock() >= until:
                return 0
        return self._grow(until) if left else 0

    def _grow(self, until: float) -> int:
        watch = _Watch(self._rows, until if self._texts.stoppable else None, self._clock)
        self._texts.grow(max(row.work.max_new_tokens for row in self._rows) - self._grown, watch.see)
        self._grown += watch.steps
        return watch.tokens

    def _forget(self) -> int:
        """Let go of texts that are over, or that nobody waits for; how many are left."""
        now = self._clock()
        left = [place for place, row in enumerate(self._rows) if not row.query.expire(now)]
        if left and len(left) < len(self._rows) and self._texts.stoppable:
            self._rows = [self._rows[place] for place in left]
            self._texts.keep(left)
        return len(left)


def _eos_token_ids(model: TaskModel, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a text, by the model or by its tokenizer."""
    return model.eos_token_ids if tokenizer.end_id is None else model.eos_token_ids | {tokenizer.end_id}


class _Row:
    def __init__(self, query: Query, model: TaskModel, tokenizer: Tokenizer) -> None:
        assert isinstance(query.work, Generate)
        self.query, self.work = query, query.work
        decode, end = decoder_after(tokenizer, self.work.ids), _eos_token_ids(model, tokenizer)
        self._continuation = Continuation(decode, self.work.max_new_tokens, self.work.stop, end)

    def add(self, token: int, now: float) -> None:
        """Add a token, and tell whoever waits the further text or the end."""
        if self.query.expire(now):
            return
        text = self._continuation.add(token)
        if text:
            self.query.more(text)
        if self._continuation.ended is not None:
            self.query.done(self._continuation.outcome())


class _Watch:
    """Sees each token of each row. It tells the model which rows are over.

    When the step's time is up it says that of all rows, which is a pause.
    """

    def __init__(self, rows: Sequence[_Row], until: float | None, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._until = until
        self._clock = clock
        self.tokens = 0
        self.steps = 0

    def see(self, tokens: Integers) -> npt.NDArray[np.bool_]:
        """Bool [rows]: which are over."""
        self.steps += 1
        for row, token in zip(self._rows, tokens.tolist(), strict=True):
            if not row.query.over:
                self.tokens += 1
                row.add(token, self._clock())
        pause = self._until is not None and self._clock() >= self._until
        return np.array([pause or row.query.over for row in self._rows])

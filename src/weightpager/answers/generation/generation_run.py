"""A batch of prompts that is continued in steps, each text ending on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from weightpager.answers.generation.continuation import Continuation
from weightpager.answers.generation.continued_text import decoder_after
from weightpager.answers.generation.growing_texts import GrowingTexts
from weightpager.answers.padded import pad_id, padded
from weightpager.answers.query import Query
from weightpager.answers.work import Generate, Sampling
from weightpager.readers.tokenizer import Tokenizer


class GenerationRun:
    """Continues prompts that can run together; `Run` of a batch.

    A query that nobody waits for any more ends after the token or the piece of its prompt that is being computed.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Tokenizer,
        queries: Sequence[Query],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing has been read; ``tokenizer`` is the calling thread's own."""
        self._rows = [_Row(query, module, tokenizer) for query in queries]
        works = [row.work for row in self._rows]
        self._pad = pad_id(module, tokenizer)
        batch = padded(module, [work.ids for work in works], self._pad, left=True)
        self._texts = GrowingTexts(module, batch["input_ids"], batch["attention_mask"])
        self._draws = _Draws(works[0].sampling, batch["input_ids"].device)
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
        watch = _Watch(self._rows, self._texts.ids.shape[1], until if self._texts.stoppable else None, self._clock)
        with self._draws.options() as options:
            self._texts.grow(
                max(row.work.max_new_tokens for row in self._rows) - self._grown,
                pad_token_id=self._pad,
                stopping_criteria=StoppingCriteriaList([watch]),
                **options,
            )
        self._grown += watch.steps
        return watch.tokens

    def _forget(self) -> int:
        """Let go of texts that are over, or that nobody waits for; how many are left."""
        now = self._clock()
        left = [place for place, row in enumerate(self._rows) if not row.query.given_up(now)]
        if left and len(left) < len(self._rows) and self._texts.stoppable:
            self._rows = [self._rows[place] for place in left]
            self._texts.keep(left)
        return len(left)


def end_tokens(module: nn.Module, tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that end a text, by the model or by its tokenizer."""
    named = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    found = [*(named if isinstance(named, list) else [named]), tokenizer.end_id]
    return frozenset(number for number in found if number is not None)


class _Draws:
    """How a batch's tokens are drawn. A seed is this batch's alone, however many others draw between its steps."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._devices = [device] if device.type == "cuda" else []
        self._state: tuple[Tensor, list[Tensor]] | None = None

    @contextmanager
    def options(self) -> Iterator[dict[str, Any]]:
        """Options of `generate`, for one step.

        A penalty for repeating, which a model may name, isn't taken: it would count the padding of shorter prompts too.
        """
        own = self._sampling
        plain = {"repetition_penalty": 1.0, "min_p": None}
        if own.temperature == 0:
            yield plain | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            return
        with torch.random.fork_rng(devices=self._devices, enabled=own.seed is not None):
            if own.seed is not None:
                self._go_on(own.seed)
            yield plain | {"do_sample": True, "temperature": own.temperature, "top_p": own.top_p, "top_k": 0}
            if own.seed is not None:
                self._state = torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._devices]

    def _go_on(self, seed: int) -> None:
        if self._state is None:
            torch.manual_seed(seed)
            return
        torch.set_rng_state(self._state[0])
        for device, state in zip(self._devices, self._state[1], strict=True):
            torch.cuda.set_rng_state(state, device)


class _Row:
    def __init__(self, query: Query, module: nn.Module, tokenizer: Tokenizer) -> None:
        assert isinstance(query.work, Generate)
        self.query, self.work = query, query.work
        decode, end = decoder_after(tokenizer, self.work.ids), end_tokens(module, tokenizer)
        self._continuation = Continuation(decode, self.work.max_new_tokens, self.work.stop, end)

    def add(self, token: int, now: float) -> None:
        """Tell whoever waits what has come of it."""
        if self.query.given_up(now):
            return
        text = self._continuation.add(token)
        if text:
            self.query.more(text)
        if self._continuation.ended is not None:
            self.query.done(self._continuation.outcome())


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Sees every token of every row as soon as it is there, and says which rows are over, or for now."""

    def __init__(self, rows: Sequence[_Row], length: int, until: float | None, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._seen = length
        self._until = until
        self._clock = clock
        self.tokens = 0
        self.steps = 0

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:  # noqa: ARG002 - transformers'
        """Bool [rows]: which are over."""
        for tokens in input_ids[:, self._seen :].T.tolist():
            self.steps += 1
            for row, token in zip(self._rows, tokens, strict=True):
                if not row.query.over:
                    self.tokens += 1
                    row.add(token, self._clock())
        self._seen = input_ids.shape[1]
        pause = self._until is not None and self._clock() >= self._until
        return torch.tensor([pause or row.query.over for row in self._rows], device=input_ids.device)

"""A batch of prompts through transformers' `generate`, each ending on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria, StoppingCriteriaList

from weightpager.engine.continued_text import decoder_after
from weightpager.errors import RequestTimeoutError, ServerClosedError
from weightpager.server.continuation import Continuation
from weightpager.server.job import Delta, Done, Failed, Job
from weightpager.server.padded import pad_id, padded
from weightpager.server.work import Generate, Sampling


def generate(
    module: nn.Module, tokenizer: Any, jobs: Sequence[Job], clock: Callable[[], float] = time.monotonic
) -> int:
    """Continue the prompts of jobs that can run together, telling their listeners; how many tokens that took.

    A job that is cancelled, or whose time is over, ends after the token that is being computed.
    """
    works = [job.work for job in jobs if isinstance(job.work, Generate)]
    assert len(works) == len(jobs)
    rows = [_Row(job, work, _continuation(module, tokenizer, work)) for job, work in zip(jobs, works, strict=True)]
    batch = padded(module, [work.ids for work in works], pad_id(module, tokenizer), left=True)
    watch = _Watch(rows, batch["input_ids"].shape[1], clock)
    with _drawing(works[0].sampling, batch["input_ids"].device) as options:
        module.generate(  # type: ignore[operator]
            **batch,
            **options,
            max_new_tokens=max(work.max_new_tokens for work in works),
            pad_token_id=pad_id(module, tokenizer),
            stopping_criteria=StoppingCriteriaList([watch]),
        )
    return watch.tokens


def end_tokens(module: nn.Module, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text, by the model or by its tokenizer."""
    named = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    found = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    return frozenset(number for number in found if number is not None)


def _continuation(module: nn.Module, tokenizer: Any, work: Generate) -> Continuation:
    decode = decoder_after(tokenizer, work.ids)
    return Continuation(decode, work.max_new_tokens, work.stop, end_tokens(module, tokenizer))


@contextmanager
def _drawing(sampling: Sampling, device: torch.device) -> Iterator[dict[str, Any]]:
    """Options of `generate`; a seed is this batch's alone.

    A penalty for repeating, which a model may name, isn't taken: it would count the padding of shorter prompts too.
    """
    plain = {"repetition_penalty": 1.0, "min_p": None}
    if sampling.temperature == 0:
        yield plain | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices, enabled=sampling.seed is not None):
        if sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        yield plain | {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}


class _Row:
    def __init__(self, job: Job, work: Generate, continuation: Continuation) -> None:
        self.job, self.work, self.continuation = job, work, continuation
        self.over = False

    def add(self, token: int, now: float) -> None:
        """Tell the listener what has come of it."""
        job = self.job
        self.over = job.cancelled or now > job.deadline
        if self.over:
            late = RequestTimeoutError("the request took longer than the server gives it")
            ended = ServerClosedError("the server is shutting down; ask again when it is back")  # or nobody listens
            job.listener(Failed(job.index, ended if job.cancelled else late))
            return
        text = self.continuation.add(token)
        if text:
            job.listener(Delta(job.index, text))
        if self.continuation.ended is not None:
            self.over = True
            job.listener(Done(job.index, self.continuation.outcome()))


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Sees every token of every row as soon as it is there, and says which rows are over."""

    def __init__(self, rows: Sequence[_Row], prompt: int, clock: Callable[[], float]) -> None:
        self._rows = rows
        self._seen = prompt
        self._clock = clock
        self.tokens = 0

    def __call__(self, input_ids: Tensor, scores: object, **_: object) -> Tensor:  # noqa: ARG002 - transformers'
        """Bool [rows]: which are over."""
        for tokens in input_ids[:, self._seen :].T.tolist():
            for row, token in zip(self._rows, tokens, strict=True):
                if not row.over:
                    self.tokens += 1
                    row.add(token, self._clock())
        self._seen = input_ids.shape[1]
        return torch.tensor([row.over for row in self._rows], device=input_ids.device)

"""Clients of a server: some that ask again and again, others that ask when a trace says so."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from weightpager.backends.torch.architecture import read_config
from weightpager.bundle import Bundle
from weightpager.engine import Engine
from weightpager_lab.timing import spread

Ids = tuple[int, ...]
"""A text, as its token ids."""

Answers = Mapping[tuple[str, Ids], Sequence[float]]
"""What is right: (task, text) → its vector."""

TOLERANCE = 0.02
"""Of a vector's length: batches of bfloat16 products differ in their last bits."""


@dataclass(frozen=True)
class Ask:
    """One request: for which task, when (seconds from the start), and which text."""

    task: str
    at: float
    text: Ids


@dataclass
class Tally:
    """What has come of requests. ``waits`` are seconds in the queue, ``seconds`` from asking to the answer."""

    waits: dict[str, list[float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    failed: list[str] = field(default_factory=list)
    wrong: int = 0

    def add(self, ask: Ask, answer: httpx.Response, seconds: float, answers: Answers) -> None:
        if answer.status_code == 429:
            self.refused += 1
        elif answer.status_code != 200:
            self.failed.append(f"{answer.status_code} {answer.text[:200]}")
        else:
            self.seconds.append(seconds)
            self.waits.setdefault(ask.task, []).append(_waited(answer))
            self.wrong += not _close(answer.json()["data"][0]["embedding"], answers[ask.task, ask.text])

    @property
    def p50(self) -> float | None:
        """The median from asking to the answer; None where nothing was answered."""
        return (spread(self.seconds, "lower") or {}).get("p50")

    @property
    def p99(self) -> float | None:
        return (spread(self.seconds, "lower") or {}).get("p99")

    @property
    def longest_wait(self) -> float | None:
        """The longest in the queue of any request; None where nothing was answered."""
        return max(itertools.chain(*self.waits.values()), default=None)


async def crowd(url: str, asks: Sequence[Sequence[Ask]], seconds: float, answers: Answers) -> Tally:
    """Clients that each ask, in a circle, again as soon as they are answered, for so long."""
    tally = Tally()
    end = time.monotonic() + seconds

    async def client(own: Sequence[Ask], session: httpx.AsyncClient) -> None:
        for ask in itertools.cycle(own):
            if time.monotonic() >= end:
                return
            status = await _ask(session, ask, tally, answers)
            if status == 429:
                await asyncio.sleep(random.random())

    async with _session(url) as session:
        await asyncio.gather(*(client(own, session) for own in asks))
    return tally


async def replay(url: str, asks: Sequence[Ask], answers: Answers) -> Tally:
    """Each request at its time, whether others have been answered or not."""
    tally = Tally()
    start = time.monotonic()

    async def one(ask: Ask, session: httpx.AsyncClient) -> None:
        await asyncio.sleep(max(0.0, ask.at - (time.monotonic() - start)))
        await _ask(session, ask, tally, answers)

    async with _session(url) as session:
        await asyncio.gather(*(one(ask, session) for ask in asks))
    return tally


async def watch(url: str, seconds: float) -> int:
    """The most bytes that weights took in this time, looked at at least once."""
    most, end = 0, time.monotonic() + seconds
    async with _session(url) as session:
        while True:
            memory: dict[str, int] = (await session.get("/status")).json()["memory"]
            most = max(most, sum(memory.values()))
            if time.monotonic() >= end:
                return most
            await asyncio.sleep(0.5)


def _session(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=300, trust_env=False, limits=httpx.Limits(max_connections=None))


async def _ask(session: httpx.AsyncClient, ask: Ask, tally: Tally, answers: Answers) -> int:
    start = time.monotonic()
    try:
        answer = await session.post("/v1/embeddings", json={"model": ask.task, "input": ask.text})
    except httpx.TransportError as error:
        tally.failed.append(repr(error))
        return 0
    tally.add(ask, answer, time.monotonic() - start, answers)
    return answer.status_code


def _waited(answer: httpx.Response) -> float:
    return float(answer.headers["server-timing"].rsplit("=", 1)[1]) / 1e3


def _close(found: Sequence[float], right: Sequence[float]) -> bool:
    distance = sum((a - b) ** 2 for a, b in zip(found, right, strict=True)) ** 0.5
    length = sum(b**2 for b in right) ** 0.5
    return bool(distance <= TOLERANCE * length)


TEXTS = 24


def made_texts(bundle: Bundle, drawn: random.Random) -> list[Ids]:
    """Made of any tokens, some short, some long."""
    words = int(read_config(bundle).get_text_config().vocab_size)
    return [tuple(drawn.choices(range(words), k=drawn.randint(4, 48))) for _ in range(TEXTS)]


def right_answers(bundle: Bundle, texts: Sequence[Ids]) -> Answers:
    """What an engine that has all memory says to each text alone."""
    found = {}
    with Engine.from_pretrained(bundle.path, backend="torch") as engine, torch.inference_mode():
        for task in bundle.tasks:
            with engine.task(task) as module:
                base: Any = module.base_model
                for text in texts:
                    hidden = base(input_ids=torch.tensor([text])).last_hidden_state
                    found[task, text] = hidden[0].float().mean(0).tolist()
    return found


@contextmanager
def serving(
    bundle: Bundle, options: Mapping[str, object], source: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``weightpager serve`` in a process of its own, killed at the end if it still runs, and its address.

    Args:
        bundle: that is served.
        options: of the command, beside a free port.
        source: checkout whose command it is; this one if None.
    """
    flat = [str(word) for option in options.items() for word in option]
    command = [sys.executable, "-m", "weightpager", "serve", str(bundle.path), "--port", "0", *flat]
    environment = os.environ | ({} if source is None else {"PYTHONPATH": str(source / "src")})
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().split()[0].rstrip("/")
        finally:
            process.kill()


def plain_metrics(url: str) -> dict[str, float]:
    """The server's metrics without labels."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
    rows = [row.split() for row in text.splitlines() if not row.startswith("#") and "{" not in row]
    return {name: float(value) for name, value in rows}

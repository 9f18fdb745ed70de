"""Long texts beside short ones, on real servers: who waits for whom, what ends, and what comes out."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tiny
import weightpager as wp
from running import Running, serving
from weightpager.answers import model as forward_size
from weightpager.answers.kept import NOTHING_KEPT
from weightpager.answers.model import CacheSize, TaskModel
from weightpager.answers.work import Embed, Embedded, Generate, Generated, Sampling, Work
from weightpager.backends.torch.generation import CACHE
from weightpager.errors import RequestTimeoutError, ServerClosedError
from weightpager.kernels.choice import NATIVE
from weightpager.readers.tokenizer import open_tokenizer
from weightpager.server.inputs import text_inputs
from weightpager.server.inputs.text_inputs import default_limit
from weightpager.server.scheduling import batching
from weightpager.server.scheduling.batching import beginnable, largest_batch
from weightpager.server.scheduling.job import Event, Job, TextDone, TextFailed
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import BatchLimits, Policy, Settings
from weightpager.server.scheduling.worker import RunningBatch

LONG = "cat dog cow one two three red sun " * 14
"""112 tokens."""

IDS = tuple(4 + number * number % 11 for number in range(112))

KEPT = 2 * 2 * 2 * 16 * 4
"""Bytes that a cache holds of a token: keys and values of two layers, two heads of 16."""


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tiny texts are long: 14 pieces make up the long one."""
    monkeypatch.setattr(forward_size, "PIECE", 8)
    monkeypatch.setattr(forward_size, "FORWARD_TOKENS", 32)
    monkeypatch.setattr(batching, "PIECE", 8)


@pytest.fixture
def stepwise(writer_bundle: Path) -> Iterator[Running]:
    """A step is one forward."""
    with serving(writer_bundle, Settings(policy=Policy(step=0.0))) as running:
        yield running


@pytest.fixture(scope="module")
def native_writer(writer_bundle: Path) -> Iterator[wp.Engine]:
    with wp.Engine.from_pretrained(writer_bundle, backend="native") as engine:
        engine.activate("animals")
        yield engine


@pytest.fixture
def module(writer_bundle: Path) -> Iterator[tuple[wp.Engine, nn.Module]]:
    with wp.Engine.from_pretrained(writer_bundle) as engine, engine.task("animals") as module:
        yield engine, module


class Asked:
    """What becomes of jobs that no worker takes."""

    def __init__(self, engine: wp.Engine, *works: Work, cached: bool = True, deadline: float = float("inf")) -> None:
        self.events: list[Event] = []
        entry = engine.bundle.task("animals")
        self.jobs = [
            Job(entry, work, index, 0.0, deadline, self.events.append, cached=cached)
            for index, work in enumerate(works)
        ]
        self.batch = RunningBatch(self.jobs, 0.0, Policy())

    def run(self, engine: wp.Engine, between: Callable[[], object] = lambda: None) -> int:
        """Every step, something happening between two of them; how many there were."""
        steps, model, tokenizer = 0, engine.model("animals"), open_tokenizer(engine.bundle)
        while self.batch.jobs:
            self.batch.step(model, tokenizer, 0.0, NOTHING_KEPT)
            steps += 1
            between()
        return steps

    @property
    def outcomes(self) -> list[Any]:
        done = sorted((event for event in self.events if isinstance(event, TextDone)), key=lambda event: event.index)
        return [event.outcome for event in done]


def test_short_prompts_do_not_wait_for_a_long_one(stepwise: Running) -> None:
    ended = []

    def ask(prompt: str) -> None:
        stepwise.complete(prompt)
        ended.append(prompt)

    with ThreadPoolExecutor(8) as pool:
        go = threading.Event()
        stepwise.service.worker.between(go.wait)
        asked = [pool.submit(ask, LONG)]
        while not stepwise.service.queue.waiting():
            time.sleep(0.005)
        asked += [pool.submit(ask, "cat") for _ in range(7)]
        while sum(stepwise.service.queue.waiting().values()) < len(asked):
            time.sleep(0.005)
        go.set()
        for one in asked:
            one.result()
    assert ended[-1] == LONG


def test_a_long_prompt_is_continued_as_if_it_had_been_read_at_once(
    module: tuple[wp.Engine, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = module
    works = [Generate(IDS, 9), Generate(IDS[:100], 6), Generate(IDS[:5], 9)]
    asked = Asked(engine, *works)
    steps = asked.run(engine)
    monkeypatch.setattr(forward_size, "PIECE", 256)
    monkeypatch.setattr(forward_size, "FORWARD_TOKENS", 2048)
    at_once = [Asked(engine, work) for work in works]
    assert [one.run(engine) for one in at_once] == [9, 6, 9]
    assert steps > 20
    assert asked.outcomes == [one.outcomes[0] for one in at_once]


def test_run_reads_long_prompts_as_a_deterministic_server_does(writer_bundle: Path) -> None:
    with serving(writer_bundle, Settings(policy=Policy(batch=1, step=0.0))) as running:
        found = running.complete(LONG, 8)
    with wp.Engine.from_pretrained(writer_bundle) as engine:
        wanted = engine.predict("animals", [LONG], max_new_tokens=8)
    assert found == wanted[0].label


def test_a_seed_draws_the_same_whoever_else_draws_between(module: tuple[wp.Engine, nn.Module]) -> None:
    engine, _ = module
    work = Generate(IDS[:20], 12, Sampling(temperature=2.0, seed=7))
    alone, beside = Asked(engine, work), Asked(engine, work)
    alone.run(engine)
    beside.run(engine, lambda: torch.rand(17))
    assert alone.outcomes == beside.outcomes
    state = torch.get_rng_state()
    Asked(engine, work).run(engine)
    assert torch.equal(state, torch.get_rng_state())


def test_the_vector_of_a_long_text_is_the_same_but_for_rounding(
    module: tuple[wp.Engine, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = module
    in_pieces = Asked(engine, Embed(IDS))
    assert in_pieces.run(engine) == 14
    monkeypatch.setattr(forward_size, "FORWARD_TOKENS", 2048)
    at_once = Asked(engine, Embed(IDS), cached=False)
    assert at_once.run(engine) == 1
    (found,), (wanted,) = in_pieces.outcomes, at_once.outcomes
    assert isinstance(found, Embedded)
    assert found.vector == pytest.approx(wanted.vector, abs=1e-5)


def test_long_vectors_of_one_request_all_come(writer_bundle: Path) -> None:
    with serving(writer_bundle, Settings(policy=Policy(step=0.0), timeout=10)) as running:

        def vectors(*texts: list[int]) -> list[list[float]]:
            found = running.openai.embeddings.create(model="animals", input=list(texts))
            return [row.embedding for row in found.data]

        texts = [list(IDS), list(IDS[:100]), list(IDS[4:])]
        assert vectors(*texts) == [vectors(text)[0] for text in texts]
        running.until_idle()


def test_nothing_is_kept_of_a_text_that_is_read_at_once(
    module: tuple[wp.Engine, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, own = module
    kept = []
    own.base_model.register_forward_hook(lambda *given: kept.append(getattr(given[-1], CACHE, None)))  # type: ignore[operator]
    Asked(engine, Embed(IDS[:20]), Embed(IDS[:16]), cached=False).run(engine)
    assert kept == [None]


@pytest.mark.parametrize("work", [Generate(IDS, 9), Embed(IDS)], ids=["generate", "embed"])
def test_a_long_text_ends_with_the_piece_when_its_client_goes_or_its_time_is_over(
    module: tuple[wp.Engine, nn.Module], work: Work
) -> None:
    engine, _ = module
    gone = Asked(engine, work)
    assert gone.run(engine, gone.jobs[0].cancel) == 2  # the second finds nobody there, and computes nothing
    late = Asked(engine, work, deadline=time.monotonic() + 1e6)
    assert late.run(engine, lambda: setattr(late.jobs[0], "deadline", 0.0)) == 2
    for asked, kind in ((gone, ServerClosedError), (late, RequestTimeoutError)):
        (event,) = asked.events
        assert isinstance(event, TextFailed)
        assert isinstance(event.error, kind)


def test_who_has_ended_is_computed_no_further(module: tuple[wp.Engine, nn.Module]) -> None:
    engine, own = module
    asked, rows = Asked(engine, Generate(IDS[:6], 2), Generate(IDS[:6], 5), Generate(IDS[:6], 7)), []
    own.base_model.register_forward_pre_hook(  # type: ignore[operator]
        lambda _, args, given: rows.append(len(given["input_ids"])), with_kwargs=True
    )
    asked.run(engine)
    assert [outcome.tokens for outcome in asked.outcomes if isinstance(outcome, Generated)] == [2, 5, 7]
    assert rows == [3, 3, 2, 2, 2, 1, 1]


def test_the_worker_goes_on_when_a_long_text_has_no_reader_any_more(stepwise: Running) -> None:
    before = stepwise.complete("cat")
    with stepwise.post("/v1/completions", {"model": "animals", "prompt": LONG, "max_tokens": 8}):
        while not stepwise.service.worker.running:
            time.sleep(0.001)
    stepwise.until_idle()
    assert stepwise.complete("cat") == before


def test_admin_acts_between_two_steps(stepwise: Running) -> None:
    with ThreadPoolExecutor(1) as pool:
        alone = stepwise.complete(LONG, 8)
        answer = pool.submit(stepwise.complete, LONG, 8)
        while not stepwise.service.worker.running:
            time.sleep(0.001)
        stepwise.service.worker.between(lambda: stepwise.service.worker.enter("numbers")).result()
        assert answer.result() == alone


def test_a_text_that_is_too_long_is_the_clients_mistake(writer_bundle: Path, assistant_bundle: Path) -> None:
    with serving(writer_bundle, Settings(most_text_tokens=100)) as running:
        before = running.complete("cat")
        with pytest.raises(
            openai.BadRequestError, match="at most 100 tokens a text, as the server's --max-text-tokens"
        ):
            running.complete(LONG)
        with pytest.raises(openai.BadRequestError, match="found 112"):
            running.openai.embeddings.create(model="animals", input=list(IDS))
        assert running.complete("cat") == before


def test_the_longest_text_follows_from_how_it_is_read() -> None:
    assert default_limit(131_072, 512, in_pieces=True) == 8192
    assert default_limit(512, 128, in_pieces=True) == 512
    assert default_limit(None, None, in_pieces=False) == 2048
    assert default_limit(8192, 512, in_pieces=False) == 2048
    assert default_limit(8192, 4096, in_pieces=False) == 4096  # what a task is compiled with is read


def test_a_task_that_classifies_makes_no_other_tasks_texts_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = tiny.writer(tmp_path, compare="none", training={"steps": 2, "batch": 4})
    mixed["tasks"]["animal"] = tiny.classification(tmp_path, "animal", {"cat": ["cat"], "dog": ["dog"]})
    wp.compile(mixed, out=tmp_path / "mixed.bundle")
    monkeypatch.setattr(text_inputs, "IN_PIECES", 120)
    monkeypatch.setattr(text_inputs, "FORWARD_TOKENS", 32)
    with serving(tmp_path / "mixed.bundle") as running:
        embed = running.openai.embeddings.create
        assert embed(model="animals", input=list(IDS)).data
        with pytest.raises(openai.BadRequestError, match="at most 32 tokens a text, as the server's --max-text-tokens"):
            embed(model="animal", input=list(IDS))
        assert embed(model="animal", input=list(IDS[:32])).data


def test_a_reserve_for_caches_holds_long_vectors_too(writer_bundle: Path) -> None:
    with wp.Engine.from_pretrained(writer_bundle, kv_reserve=120 * KEPT) as engine:
        service, task = Service(engine, Settings()), engine.bundle.task("animals")
        service.admit(task, 2)
        jobs = service.submit(task, [Embed(IDS), Embed(IDS[:20])], print)
        assert [job.cached for job in jobs] == [True, False]
        assert RunningBatch(jobs[:1], 0.0).started.tokens == len(IDS)
        assert service.bundles[""].batch_limits.room == 120


def test_a_text_that_the_reserve_never_holds_gets_no_vector(writer_bundle: Path) -> None:
    with serving(writer_bundle, kv_reserve=100 * KEPT) as running:
        expected = "at most 100 tokens, as the server's --kv-reserve holds, found 112"
        with pytest.raises(openai.BadRequestError, match=expected) as refused:
            running.openai.embeddings.create(model="animals", input=[list(IDS[:20]), list(IDS)])
        assert (refused.value.param, refused.value.code) == ("input", "context_length_exceeded")
        assert running.openai.embeddings.create(model="animals", input=list(IDS[:100])).data


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
@given(st.lists(st.tuples(st.integers(1, 100), st.integers(1, 20)), min_size=1, max_size=12), st.integers(2, 6))
def test_caches_hold_no_more_than_is_counted_and_reserved(
    native_writer: wp.Engine, asked: list[tuple[int, int]], blocks: int
) -> None:
    engine, size = native_writer, native_writer.cache_size()
    assert size == CacheSize(KEPT, 64)
    policy, limits = Policy(), BatchLimits(room=blocks * 64, cache=size, context=128)
    works = [Generate(IDS[:tokens], most) for tokens, most in asked]
    entry = engine.bundle.task("animals")
    queue = [Job(entry, work, 0, 0.0, float("inf"), lambda _: None, limits, cached=True) for work in works]
    model, tokenizer, batches = engine.model("animals"), open_tokenizer(engine.bundle), list[RunningBatch]()
    while queue or batches:
        started, waiting = [batch.started for batch in batches], [job.waiting for job in queue]
        if places := beginnable(waiting, started, 0.0, policy):
            chosen = largest_batch(waiting, places, started, policy)
            batches.append(RunningBatch([queue[place] for place in chosen], 0.0))
            queue = [job for place, job in enumerate(queue) if place not in chosen]
        for batch in batches:
            batch.step(model, tokenizer, 0.0, NOTHING_KEPT)
        held = sum(batch._run._texts._reading._cache.bytes for batch in batches)  # type: ignore[union-attr]
        counted = sum(batch.started.tokens for batch in batches)
        assert held <= counted * size.token_bytes
        assert counted <= blocks * 64
        batches = [batch for batch in batches if batch.jobs]


def test_a_server_whose_worker_is_stuck_is_not_ready(writer_bundle: Path) -> None:
    with serving(writer_bundle, Settings(timeout=0.1)) as running, running.http() as client:
        assert client.get("/ready").status_code == 200
        seen = threading.Event()
        going = running.service.worker.between(lambda: seen.wait(100))
        while client.get("/ready").status_code == 200:
            time.sleep(0.01)
        assert client.get("/status").json()["state"] == "stuck"
        seen.set()
        going.result()
        running.until_idle()
        while running.service.worker.busy:
            time.sleep(0.01)
        assert client.get("/ready").status_code == 200


def test_closing_cuts_off_a_forward_that_does_not_end(assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.server.scheduling.service._LAST", 0.1)
    forwards = []

    def endless(model: TaskModel, *_: object) -> None:
        while True:
            forwards.append(model.logits({"input_ids": np.array([[4, 5]])}))

    monkeypatch.setattr("weightpager.answers.encoding.embed", endless)
    with serving(assistant_bundle) as running:
        with running.post("/v1/embeddings", {"model": "weather", "input": "sun"}):
            while not forwards:
                time.sleep(0.005)
        worker = running.service.worker
    worker.stop(60)
    assert not worker.alive


ENDLESS = """
import logging, sys, threading
from types import SimpleNamespace
import torch
from weightpager.server.run import cut_off

logging.basicConfig(level="ERROR")
def compute():
    a = torch.rand(2000, 2000)
    while True:
        a = a @ a
threading.Thread(target=compute, daemon=True).start()
with cut_off(SimpleNamespace(worker=SimpleNamespace(alive=True))):
    print("last words")
    raise SystemExit
"""


@pytest.mark.slow
def test_a_process_whose_worker_never_ends_ends_itself() -> None:
    found = subprocess.run([sys.executable, "-c", ENDLESS], capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 1
    assert found.stdout == "last words\n"
    assert "cut off" in found.stderr
    assert "terminate called" not in found.stderr

"""Batches, cancelling, limits and shutting down, on real servers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

import tiny
import weightpager as wp
from running import Running, serving
from weightpager.answers.work import Embed
from weightpager.errors import ConfigError, RequestTimeoutError, ServerClosedError
from weightpager.runtime.budget import smallest_budget
from weightpager.server.routes.exchange import Exchange
from weightpager.server.routes.generation_answer import CompletionFormat
from weightpager.server.scheduling.job import Delta
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Policy, Settings
from weightpager.server.scheduling.worker import RunningBatch

TEXTS = [" ".join(tiny.WORDS[start : start + length]) for start in range(8) for length in (1, 3, 4)]
TASKS = ["animal", "weather", "number", "colour"]


def classify(running: Running, task: str, texts: list[str] | str) -> list[dict[str, Any]]:
    with running.http() as client:
        answer = client.post("/v1/classifications", json={"model": task, "input": texts})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def direct(bundle: Path, task: str, texts: list[str]) -> list[Any]:
    with wp.Engine.from_pretrained(bundle) as engine:
        return engine.predict(task, texts)


def test_classes_are_what_the_engine_says(assistant: Running, assistant_bundle: Path) -> None:
    for found, wanted in zip(
        classify(assistant, "weather", TEXTS), direct(assistant_bundle, "weather", TEXTS), strict=True
    ):
        assert found["label"] == wanted.label
        assert found["score"] == pytest.approx(wanted.score, abs=1e-5)
        assert sum(score["score"] for score in found["scores"]) == pytest.approx(1)
        assert {score["label"] for score in found["scores"]} == {"sun", "rain", "snow"}


def test_only_the_likeliest_classes_if_asked(assistant: Running) -> None:
    with assistant.http() as client:
        answer = client.post("/v1/classifications", json={"model": "weather", "input": "sun", "top": 1}).json()
    assert len(answer["data"][0]["scores"]) == 1
    assert answer["usage"]["prompt_tokens"] == 3


def test_tags_are_what_the_engine_says(assistant: Running, assistant_bundle: Path) -> None:
    for found, wanted in zip(
        classify(assistant, "colour", TEXTS), direct(assistant_bundle, "colour", TEXTS), strict=True
    ):
        assert tuple((word["word"], word["label"]) for word in found["words"]) == wanted.tags


@pytest.mark.parametrize("task", ["weather", "colour"])
def test_a_text_that_is_cut_says_so(assistant: Running, assistant_bundle: Path, task: str) -> None:
    texts = [" ".join(["red"] * words) for words in (1, 14, 15)]  # two special tokens, and 16 are read
    assert [found["truncated"] for found in classify(assistant, task, texts)] == [False, False, True]
    assert [found.truncated for found in direct(assistant_bundle, task, texts)] == [False, False, True]


def test_an_empty_text_has_no_words_but_a_class(assistant: Running) -> None:
    assert classify(assistant, "colour", "")[0]["words"] == []
    assert classify(assistant, "weather", "")[0]["label"] in {"sun", "rain", "snow"}


@pytest.mark.slow
def test_deterministic_answers_are_the_engines_bit_for_bit(assistant_bundle: Path, writer_bundle: Path) -> None:
    settings = Settings(policy=Policy(batch=1))
    with serving(assistant_bundle, settings) as running, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: classify(running, "weather", text)[0]["score"], TEXTS))
    assert found == [one.score for one in direct(assistant_bundle, "weather", TEXTS)]
    with serving(writer_bundle, settings) as running:
        choices = running.openai.completions.create(model="animals", prompt=TEXTS, max_tokens=8, temperature=0).choices
    with wp.Engine.from_pretrained(writer_bundle) as engine:
        wanted = engine.predict("animals", TEXTS, max_new_tokens=8)
    assert [choice.text for choice in choices] == [one.label for one in wanted]


@pytest.mark.slow
def test_many_clients_get_their_own_answers_under_a_tight_budget(assistant_bundle: Path) -> None:
    wanted = {task: direct(assistant_bundle, task, TEXTS) for task in TASKS}
    budget = str(smallest_budget(wp.Bundle.open(assistant_bundle)))
    with serving(assistant_bundle, Settings(policy=Policy(patience=0.2)), budget=budget) as running:
        places = [(task, place) for place in range(len(TEXTS)) for task in TASKS]
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(lambda at: classify(running, at[0], TEXTS[at[1]])[0], places))
        report = running.service.engine.report()
    for (task, place), answer in zip(places, found, strict=True):
        right = wanted[task][place]
        label = (
            " ".join(f"{word['word']}/{word['label']}" for word in answer["words"])
            if answer["words"]
            else answer["label"]
        )
        assert label == right.label
    assert report.memory.total <= report.budget


@pytest.mark.slow
def test_a_short_prompt_is_not_continued_past_the_end_of_a_long_one(tmp_path: Path) -> None:
    wp.compile(tiny.writer(tmp_path, model=str(tiny.opt(tmp_path / "opt"))), out=tmp_path / "opt.bundle")
    asked = [("one", 25), ("one two three " * 9, 4)]

    with serving(tmp_path / "opt.bundle") as running, ThreadPoolExecutor(2) as pool:
        alone = [running.complete(*one) for one in asked]
        slow = Slow(running)
        together = [pool.submit(running.complete, *one) for one in asked]
        while sum(running.service.queue.waiting().values()) < len(asked):
            time.sleep(0.005)
        slow.go.set()
        assert [one.result() for one in together] == alone


def test_keys_and_values_are_kept_within_their_reserve(writer_bundle: Path) -> None:
    token = 2 * 2 * 2 * 16 * 4  # two layers, two heads of 16
    with serving(writer_bundle, kv_reserve=20 * token) as running:
        client = running.openai
        found = client.completions.create(model="numbers", prompt=[[13, 14]] * 5, max_tokens=8, temperature=0)
        assert len({choice.text for choice in found.choices}) == 1
        running.until_idle()
        batches = running.service.metrics.registry.get_sample_value(
            "weightpager_batch_texts_bucket", {"task": "numbers", "le": "2.0"}
        )
        assert batches == 3  # of two, two and one
        with pytest.raises(openai.BadRequestError, match="at most 20 tokens, as the server's --kv-reserve holds"):
            client.completions.create(model="numbers", prompt=[13, 14], max_tokens=19)


def test_keys_and_values_are_counted_in_what_is_computed(writer_bundle: Path) -> None:
    token = 2 * 2 * 2 * 16 * 2  # in bfloat16
    with (
        serving(writer_bundle, kv_reserve=20 * token, dtype="bfloat16") as running,
        pytest.raises(openai.BadRequestError, match="at most 20 tokens, as the server's --kv-reserve holds"),
    ):
        running.openai.completions.create(model="numbers", prompt="one two", max_tokens=19)


class Slow:
    """Holds the worker up between two batches until told to go on."""

    def __init__(self, running: Running) -> None:
        self.go = threading.Event()
        running.service.worker.between(self.go.wait)


@pytest.fixture
def held(assistant_bundle: Path) -> Iterator[tuple[Running, Slow]]:
    settings = Settings(queue=3, timeout=30)
    with serving(assistant_bundle, settings) as running:
        slow = Slow(running)
        yield running, slow
        slow.go.set()


def test_a_full_queue_says_when_to_come_back(held: tuple[Running, Slow]) -> None:
    running, slow = held
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(classify, running, "weather", ["sun", "rain", "snow"])
        while not running.service.queue.waiting():
            time.sleep(0.005)
        with running.http() as client:
            refused = client.post("/v1/classifications", json={"model": "animal", "input": "cat"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        slow.go.set()
        assert len(waiting.result()) == 3


def test_a_request_of_more_texts_than_may_wait_is_not_told_to_come_back(held: tuple[Running, Slow]) -> None:
    running, _ = held
    with running.http() as client:
        refused = client.post("/v1/classifications", json={"model": "weather", "input": ["sun"] * 4})
    assert refused.status_code == 400
    assert "at most 3 texts, as the server's --queue, found 4" in refused.json()["error"]["message"]


def test_a_client_that_goes_away_leaves_the_queue(held: tuple[Running, Slow]) -> None:
    running, slow = held
    with running.post("/v1/classifications", {"model": "weather", "input": ["sun", "rain"]}):
        while not running.service.queue.waiting():
            time.sleep(0.005)
    while running.service.queue.waiting():
        time.sleep(0.005)
    slow.go.set()
    running.until_idle()
    assert running.service.engine.report().switches == ()


def test_a_client_that_goes_away_ends_what_is_generated_for_it(writer: Running) -> None:
    def tokens() -> float:
        return float(
            writer.service.metrics.registry.get_sample_value("weightpager_generated_tokens_total", {"task": "animals"})
            or 0
        )

    before, asked = tokens(), 100
    with (
        writer.http() as client,
        client.stream(
            "POST",
            "/v1/completions",
            json={
                "model": "animals",
                "prompt": "cat",
                "max_tokens": asked,
                "stream": True,
                "temperature": 2,
                "seed": 1,
            },
        ) as answer,
    ):
        next(answer.iter_lines())
    writer.until_idle()
    assert tokens() - before < asked


def test_a_client_that_leaves_an_unread_answer_is_no_error(writer: Running, caplog: pytest.LogCaptureFixture) -> None:
    def left() -> float:
        labels = {"route": "/v1/completions", "task": "animals", "status": "499"}
        return writer.service.metrics.registry.get_sample_value("weightpager_requests_total", labels) or 0.0

    before = left()
    body = {"model": "animals", "prompt": ["cat dog"] * 20, "max_tokens": 100, "temperature": 2}
    with writer.post("/v1/completions", body):
        while not writer.service.worker.running:
            time.sleep(0.005)
    while left() == before:
        time.sleep(0.005)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_fault_in_a_stream_leaves_its_traceback_in_the_log(
    writer: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unwritable(*_: object) -> None:
        raise LookupError("no such piece")

    monkeypatch.setattr(CompletionFormat, "chunk", unwritable)
    with writer.http() as client:
        body = {"model": "numbers", "prompt": "one", "max_tokens": 2, "stream": True}
        assert "the server failed; its log says why" in client.post("/v1/completions", json=body).text
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == "a request failed: no such piece"
    assert "in unwritable" in logging.Formatter().format(record)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_how_long_it_waited(writer: Running, stream: bool) -> None:
    body = {"model": "animals", "prompt": "cat", "max_tokens": 2, "stream": stream}
    with writer.http() as client:
        answer = client.post("/v1/completions", json=body)
    assert re.fullmatch(r"queue;dur=\d+\.\d", answer.headers["server-timing"])


def test_a_slow_reader_holds_nobody_up(writer: Running) -> None:
    body = {"model": "animals", "prompt": ["cat"] * 16, "max_tokens": 100, "stream": True, "temperature": 2}
    with writer.post("/v1/completions", body) as slow:
        slow.recv(1)
        found = writer.openai.completions.create(model="numbers", prompt="one", max_tokens=2, temperature=0)
        assert found.choices[0].finish_reason


@pytest.mark.slow
def test_a_request_that_waits_too_long_is_given_up(assistant_bundle: Path) -> None:
    with serving(assistant_bundle, Settings(timeout=0.2)) as running, running.http() as client:
        slow = Slow(running)
        found = client.post("/v1/classifications", json={"model": "weather", "input": "sun"})
        slow.go.set()
        assert found.status_code == 504
        assert found.json()["error"]["code"] == "timeout"
        running.until_idle()
        assert classify(running, "weather", "sun")


def test_generation_that_takes_too_long_is_given_up(writer_bundle: Path) -> None:
    with serving(writer_bundle, Settings(timeout=0.05)) as running, running.http() as client:
        body = {"model": "animals", "prompt": ["cat"] * 64, "max_tokens": 120, "temperature": 2}
        assert client.post("/v1/completions", json=body).status_code == 504
        running.until_idle()


def test_shutting_down_finishes_what_has_begun(assistant_bundle: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        with serving(assistant_bundle) as running:
            slow = Slow(running)
            answers = [pool.submit(classify, running, task, "red cat") for task in TASKS]
            while sum(running.service.queue.waiting().values()) < len(TASKS):
                time.sleep(0.005)
            slow.go.set()
        assert all(answer.result() for answer in answers)
    assert not running.service.ready


def test_who_is_not_answered_in_the_grace_is_told(writer_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.server.run._LAST", 60)  # a busy machine takes longer to tell
    never_ends = {"temperature": 2, "seed": 135}  # by chance most texts end within twenty tokens
    body = {"model": "animals", "prompt": "cat", "max_tokens": 100, **never_ends}
    with ThreadPoolExecutor(3) as pool:
        with serving(writer_bundle, Settings(policy=Policy(step=0.0)), grace=0) as running:
            url, begun = running.url, threading.Event()

            def slow() -> None:
                with suppress(ServerClosedError):
                    while True:
                        running.service.worker.between(lambda: time.sleep(0.2)).result()

            def stream() -> list[str]:
                data = {**body, "stream": True}
                with running.http() as client, client.stream("POST", "/v1/completions", json=data) as answer:
                    lines = []
                    for line in answer.iter_lines():
                        begun.set()
                        lines.append(line)
                    return [line for line in lines if line]

            def whole() -> httpx.Response:
                return httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)

            pool.submit(slow)
            streamed, answered = pool.submit(stream), pool.submit(whole)
            assert begun.wait(60)
            while running.service.worker.running < 2:
                time.sleep(0.005)
        last, found = json.loads(streamed.result()[-1].removeprefix("data: ")), answered.result()
        assert found.status_code == 503
        assert last == found.json()
        assert last["error"]["code"] == "shutting_down"


def test_a_damaged_page_fails_its_requests_and_no_others(assistant_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(assistant_bundle, tmp_path / "copy.bundle"))
    bundle = wp.Bundle.open(copy)
    own = set(bundle.pages_of("weather")) - set(bundle.pages_of("animal"))
    with (copy / "pages-0000.safetensors").open("r+b") as file:
        file.seek(4096 + int(min(own)) * bundle.page_bytes)
        file.write(b"\xff" * 64)
    with serving(copy) as running, running.http() as client:
        found = client.post("/v1/classifications", json={"model": "weather", "input": "sun"})
        assert found.status_code == 500
        assert "page" not in found.json()["error"]["message"]
        assert classify(running, "animal", "cat")


def test_a_panic_of_a_library_fails_its_requests_and_no_others(
    assistant: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def panics(*_: object) -> None:
        raise PanicException("out of range")

    with monkeypatch.context() as patch, assistant.http() as client:
        patch.setattr(RunningBatch, "step", panics)
        found = client.post("/v1/classifications", json={"model": "weather", "input": "sun"})
        assert found.status_code == 500
        assert found.json()["error"]["message"] == "the server failed; its log says why"
    assert classify(assistant, "weather", "sun")


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e10])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="grace: expected a number of seconds"):
        Settings(grace=seconds)
    with pytest.raises(ConfigError, match="timeout: expected a number of seconds"):
        Settings(timeout=seconds)


def test_a_slow_reader_gets_what_has_been_computed() -> None:
    service: Any = SimpleNamespace(settings=SimpleNamespace(timeout=-60.0))
    unused: Any = None

    async def read_late() -> object:
        late = Exchange(service, unused, unused, 1)
        late.listen(Delta(0, "sun"))
        await asyncio.sleep(0)
        await late.next()
        with pytest.raises(RequestTimeoutError):
            await late.next()
        late.listen(Delta(0, "rain"))
        await asyncio.sleep(0)
        return await late.next()

    assert asyncio.run(read_late()) == Delta(0, "rain")


def test_the_room_for_caches_follows_the_tasks(writer_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wp.Engine.from_pretrained(writer_bundle, kv_reserve="64KiB", dtype="bfloat16") as engine:
        service = Service(engine, Settings())
        served = service.bundles[""]
        room = served.readers().vocabulary.most_cached
        assert room is not None
        assert served.batch_limits.room == room
        monkeypatch.setattr(engine._open, "dtype", lambda _: "float32")  # tasks came that compute in wider numbers
        service.reload()
        assert served.readers().vocabulary.most_cached == served.batch_limits.room == room // 2


def test_long_texts_run_apart_where_they_change_how_others_are_read(assistant_bundle: Path) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        service, task = Service(engine, Settings()), engine.bundle.task("weather")
        served = service.bundles[""]
        works = [Embed((4,) * tokens) for tokens in (3, 4, 5, 6)]
        service.admit(task, 2 * len(works))
        assert len({job.waiting.kind for job in service.submit(task, works, print)}) == 1
        served.readers().vocabulary.uniform_length = 4
        kinds = [job.waiting.kind for job in service.submit(task, works, print)]
        assert kinds[0] == kinds[1] != kinds[2] == kinds[3]

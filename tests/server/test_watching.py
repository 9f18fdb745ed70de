"""Health, metrics, state and log: none of them loads anything, none of them tells a secret."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from devices import LateCopier
from running import ADMIN, TOKEN, Running, serving
from weightpager.answers.kinds import EncodingKind
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.engine.report import EngineFigures
from weightpager.runtime.memory.staged_arena import Staging
from weightpager.server.middleware import JsonFormatter
from weightpager.server.routes.watch_routes import status_of
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Settings

READ_ONLY = [
    "/",
    "/docs",
    "/openapi.json",
    "/health",
    "/ready",
    "/metrics",
    "/status",
    "/v1/models",
    "/v1/models/number",
]


def sample(running: Running, name: str, **labels: str) -> float:
    with running.http() as client:
        text = client.get("/metrics").text
    rows = [row for family in text_string_to_metric_families(text) for row in family.samples]
    return sum(row.value for row in rows if row.name == name and labels.items() <= row.labels.items())


def test_every_figure_of_an_engine_is_in_the_state_and_those_described_are_metrics(wordy_bundle: Path) -> None:
    with serving(wordy_bundle, prefetch=True) as running, running.http() as client:
        running.openai.embeddings.create(model="weather", input="sun")
        state, report = client.get("/status").json(), running.service.engine.report()
        families = text_string_to_metric_families(client.get("/metrics").text)
        kinds = {family.name: (family.type, family.documentation) for family in families}
    assert report.prefetch is not None
    assert report.rows is not None
    assert {figure.name for figure in fields(EngineFigures)} <= state.keys()
    assert state["rows"].keys() == {figure.name for figure in fields(report.rows)}
    described = [
        figure.metadata["metric"]
        for part in (report, report.rows, report.prefetch)
        for figure in fields(part)
        if figure.metadata
    ]
    assert len(described) == 21
    for metric in described:
        assert kinds[metric.name] == ("counter" if metric.only_grows else "gauge", metric.words)


def test_looking_on_loads_nothing(assistant_bundle: Path) -> None:
    with serving(assistant_bundle) as running, running.http() as client:
        for path in READ_ONLY:
            assert client.get(path).status_code == 200, path
        report = running.service.engine.report()
        assert (report.bytes_read, report.resident_pages, report.switches) == (0, 0, ())


def test_rows_are_counted_and_shown(wordy_bundle: Path) -> None:
    with serving(wordy_bundle) as running, running.http() as client:
        running.openai.embeddings.create(model="weather", input=["sun", "rain"])
        rows = running.service.engine.report().rows
        assert rows is not None
        assert sample(running, "weightpager_row_lookups_total") == rows.lookups > 0
        assert sample(running, "weightpager_row_hits_total") == rows.hits
        assert sample(running, "weightpager_row_read_bytes_total") == rows.bytes_read
        assert sample(running, "weightpager_row_fault_seconds_total") == rows.fault_seconds
        assert sample(running, "weightpager_resident_rows") == rows.resident == 464
        assert client.get("/status").json()["rows"]["rows"] == 464


@pytest.mark.slow
def test_metrics_count_what_happens(assistant_bundle: Path) -> None:
    with serving(assistant_bundle) as running:
        for task in ("weather", "animal", "weather"):
            running.openai.embeddings.create(model=task, input=["sun", "rain"])
        with pytest.raises(Exception, match="wether"):
            running.openai.embeddings.create(model="wether", input="sun")
        report = running.service.engine.report()
        assert sample(running, "weightpager_switches_total", to_task="weather") == 2
        assert sample(running, "weightpager_switches_total", from_task="weather", to_task="animal") == 1
        assert sample(running, "weightpager_switch_bytes_total") == report.bytes_read
        assert sample(running, "weightpager_read_bytes_total") == report.bytes_read
        assert sample(running, "weightpager_batch_texts_sum") == 6
        assert sample(running, "weightpager_wait_seconds_count", task="weather") == 4
        assert sample(running, "weightpager_requests_total", task="weather", status="200", route="/v1/embeddings") == 2
        assert sample(running, "weightpager_requests_total", task="", status="404") == 1
        assert sample(running, "weightpager_memory_bytes") == report.memory.total
        assert sample(running, "weightpager_budget_bytes") == report.budget
        assert sample(running, "weightpager_resident_pages") == report.resident_pages
        assert sample(running, "weightpager_task_resident_ratio", task="weather") == 1
        assert sample(running, "weightpager_queue_texts") == 0


def test_an_unforeseen_failure_is_counted_and_named_like_any_answer(
    assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a private matter")

    monkeypatch.setattr(EncodingKind, "encode", broken)
    with caplog.at_level(logging.INFO), serving(assistant_bundle) as running, running.http() as client:
        answer = client.post("/v1/classifications", json={"model": "weather", "input": "sun"})
        assert answer.status_code == 500
        assert answer.json()["error"] == {
            "message": "the server failed; its log says why",
            "type": "server_error",
            "param": None,
            "code": None,
        }
        assert sample(running, "weightpager_requests_total", status="500", task="weather") == 1
        assert sample(running, "weightpager_requests_total", status="499") == 0
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    told = [line["status"] for line in lines if line.get("request") == answer.headers["x-request-id"]]
    assert told == [500]


def test_memory_is_told_for_every_purpose(assistant_bundle: Path) -> None:
    copier = LateCopier()
    with Engine(Bundle.open(assistant_bundle), EngineConfig(), staging=Staging(copier, buffers=2)) as engine:
        service = Service(engine, Settings())
        use = engine.report().memory
        families = text_string_to_metric_families(service.metrics.text().decode())
        rows = [row for family in families for row in family.samples]
        told = {row.labels["purpose"]: row.value for row in rows if row.name == "weightpager_memory_bytes"}
        known = asdict(use)
        assert known.pop("features") is known.pop("prefixes") is None  # nothing of these is kept
        assert told == status_of(service).memory == known
        assert use.staging
    copier.finish()


def test_loading_ahead_is_counted(assistant_bundle: Path) -> None:
    with serving(assistant_bundle, prefetch=True) as running:
        running.openai.embeddings.create(model="weather", input="sun")
        while not (missed := sample(running, "weightpager_prefetch_pages_total", result="misses")):
            pass  # it is counted in another thread
        with running.http() as client:
            assert client.get("/status").json()["prefetch"]["misses"] == missed
        assert missed == len(running.service.engine.bundle.pages_of("weather"))


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_ask_for_nothing_from_outside(assistant: Running, path: str) -> None:
    with assistant.http() as client:
        answer = client.get(path)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    addresses = set(re.findall(r"""(?:https?:)?//[a-z0-9.-]+\.[a-z]+[^\s"']*""", answer.text)) - {
        "http://www.w3.org/2000/svg"
    }
    assert not addresses
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=.(?!data:)", answer.text)


def test_the_state_shows_pages_by_layer_and_task(assistant_bundle: Path) -> None:
    with serving(assistant_bundle) as running, running.http() as client:
        running.openai.embeddings.create(model="weather", input="sun")
        running.openai.embeddings.create(model="animal", input="sun")
        found = client.get("/status").json()
        bundle = running.service.engine.bundle
        tasks = {task["name"]: task for task in found["tasks"]}
        assert tasks["weather"]["resident"] == tasks["animal"]["resident"] == 1
        assert sum(need for _, need in tasks["number"]["layers"]) == len(bundle.pages_of("number"))
        assert sum(layer.count("1") for layer in found["pages"]) == found["resident_pages"]
        assert [switch["to_task"] for switch in found["switches"]] == ["weather", "animal"]
        names = list(tasks)
        assert found["followed"][names.index("weather")][names.index("animal")] == 1
        assert (found["current"], found["state"]) == ("animal", "ready")


def test_the_state_tells_of_requests_and_of_the_process(assistant_bundle: Path) -> None:
    with serving(assistant_bundle) as running, running.http() as client:
        for _ in range(3):
            running.openai.embeddings.create(model="weather", input="sun")
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/embeddings", json={"model": "wether", "input": "sun"}).status_code == 404
        while (traffic := client.get("/status").json()["traffic"])["requests"] < 4:
            pass  # an answer is counted after its last byte has gone
        assert (traffic["requests"], traffic["errors"]) == (4, {"404": 1})  # those who look on aren't counted
        assert 0 < traffic["median_seconds"] <= traffic["p95_seconds"]
        assert 0 < traffic["seconds"] <= 60
        assert client.get("/status").json()["process_bytes"] > running.service.engine.report().memory.total


def test_the_state_counts_requests_of_each_task_and_not_its_batches(assistant_bundle: Path) -> None:
    with serving(assistant_bundle) as running, running.http() as client:

        def requests() -> dict[str, int]:
            return {task["name"]: task["requests"] for task in client.get("/status").json()["tasks"]}

        for _ in range(2):
            running.openai.embeddings.create(model="weather", input=["sun"] * 40)  # five batches
        assert client.post("/v1/embeddings", json={"model": "animal", "input": "sun " * 9000}).status_code == 400
        assert client.get("/v1/models/number").status_code == 200
        while sum(requests().values()) < 3:
            pass  # an answer is counted after its last byte has gone
        assert requests() == {name: {"weather": 2, "animal": 1}.get(name, 0) for name in requests()}


@pytest.mark.slow
def test_the_state_tells_what_comes_next(assistant_bundle: Path) -> None:
    with serving(assistant_bundle) as running, running.http() as client:
        assert client.get("/status").json()["forecast"] is None
        for task in ("weather", "animal") * 4:
            running.openai.embeddings.create(model=task, input="sun")
        state = client.get("/status").json()
        names, found = [task["name"] for task in state["tasks"]], state["forecast"]
        assert max(zip(found["next"], names, strict=True))[1] == "weather"
        after = dict(zip(names, found["after"], strict=True))
        assert max(zip(after["weather"], names, strict=True))[1] == "animal"
        assert (found["switches"], found["foreseen"] > 0.5) == (7, True)
        assert 0 < found["log_loss_bits"] < 1.58


def test_a_server_that_stops_is_not_ready(assistant_bundle: Path) -> None:
    with serving(assistant_bundle) as running, running.http() as client:
        running.service.worker.stop()
        assert client.get("/ready").status_code == 503
        assert client.get("/health").status_code == 200
        assert (client.head("/ready").status_code, client.head("/health").status_code) == (503, 200)
        refused = client.post("/v1/embeddings", json={"model": "weather", "input": "sun"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]


def test_the_log_tells_what_was_asked_but_not_what_was_said(
    assistant_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "a private text"
    with caplog.at_level(logging.DEBUG), serving(assistant_bundle, Settings(token=TOKEN, admin_token=ADMIN)) as running:
        with running.http(TOKEN) as client:
            answer = client.post("/v1/classifications?key=hidden", json={"model": "weather", "input": secret})
            client.post("/v1/classifications", json={"model": secret, "input": secret})
            client.get(f"/{secret}")
        with running.http(ADMIN) as client:
            client.post("/admin/verify")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    told = [line for line in lines if line.get("request") == answer.headers["x-request-id"]]
    assert [(line["route"], line["task"], line["status"]) for line in told] == [("/v1/classifications", "weather", 200)]
    everything = json.dumps([line for line in lines if line["logger"].startswith(("weightpager", "uvicorn"))])
    for hidden in (secret, TOKEN, ADMIN, "hidden"):
        assert hidden not in everything


def test_monitors_that_find_all_well_leave_no_line(assistant_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), serving(assistant_bundle) as running, running.http() as client:
        for route in ("/health", "/ready", "/metrics", "/v1/models"):
            assert client.get(route).status_code == 200
    lines = [record for record in caplog.records if record.name == "weightpager.server.requests"]
    assert [record.getMessage() for record in lines if record.levelno >= logging.INFO] == ["GET /v1/models 200"]
    assert "GET /health 200" in [record.getMessage() for record in lines]


def test_the_dashboard_asks_for_metrics_that_there_are(assistant_bundle: Path) -> None:
    dashboard = (Path(__file__).parents[2] / "docs" / "grafana.json").read_text(encoding="utf-8")
    asked = set(re.findall(r"weightpager_[a-z_]+", dashboard))
    with serving(assistant_bundle, prefetch=True) as running, running.http() as client:
        running.openai.embeddings.create(model="weather", input="sun")
        families = text_string_to_metric_families(client.get("/metrics").text)
        there = {row.name for family in families for row in family.samples}
    assert asked <= there, asked - there

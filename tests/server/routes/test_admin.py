"""What only the admin may do, and who that is."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

import tiny
import weightpager as wp
from running import ADMIN, TOKEN, Running, serving
from weightpager.bundle.garbage import collect
from weightpager.compiler.repack import repack
from weightpager.errors import ConfigError, StoreError
from weightpager.runtime.budget import smallest_budget
from weightpager.server.app import create_app
from weightpager.server.routes.encoding_routes import models
from weightpager.server.routes.watch_routes import status_of
from weightpager.server.run import server
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Settings, read_token
from weightpager.trace_file import read_trace

ROUTES = [("POST", route) for route in ("load", "prefetch", "pin", "unpin", "budget", "reload", "verify")] + [
    ("GET", "trace")
]


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_nobody_else_may(assistant: Running, method: str, route: str) -> None:
    for token in (None, TOKEN, ADMIN[:-1], ADMIN + "x"):
        with assistant.http(token) as client:
            answer = client.request(method, f"/admin/{route}")
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"


def test_there_is_no_admin_without_a_token(writer: Running) -> None:
    for token in (None, ADMIN):
        with writer.http(token) as client:
            assert client.post("/admin/verify").status_code == 403


@pytest.mark.parametrize(("remote", "status"), [(False, 403), (True, 200)])
@pytest.mark.anyio
async def test_the_admin_asks_from_this_machine_unless_allowed(
    assistant_bundle: Path, remote: bool, status: int
) -> None:
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        app = create_app(Service(engine, Settings(admin_token=ADMIN, remote_admin=remote)))
        for address, wanted in (("192.0.2.7", status), ("no address", status), ("127.0.0.1", 200), ("::1", 200)):
            transport = httpx.ASGITransport(app, client=(address, 1234))
            headers = {"Authorization": f"Bearer {ADMIN}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
                assert (await client.post("/admin/verify")).status_code == wanted


@pytest.mark.anyio
async def test_a_header_makes_nobody_local(assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    headers = {"Authorization": f"Bearer {ADMIN}", "X-Forwarded-For": "127.0.0.1"}
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        config = server(Service(engine, Settings(admin_token=ADMIN)), host="127.0.0.1", port=0).config
        config.load()
        for address, wanted in (("192.0.2.7", 403), ("127.0.0.1", 200), ("::1", 200)):
            transport = httpx.ASGITransport(config.loaded_app, client=(address, 1234))
            async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
                assert (await client.post("/admin/verify")).status_code == wanted


def test_load_pin_and_unpin(assistant: Running) -> None:
    engine = assistant.service.engine
    with assistant.http(ADMIN) as client:
        engine.deactivate()
        engine.evict()
        loaded = client.post("/admin/load", json={"task": "number"}).json()
        assert loaded["loaded_bytes"] > 0
        assert "number" in engine.resident_tasks
        assert client.post("/admin/load", json={"task": "number"}).json()["loaded_bytes"] == 0
        client.post("/admin/pin", json={"task": "weather"}).raise_for_status()
        client.post("/admin/load", json={"task": "animal"}).raise_for_status()
        engine.evict()
        assert "weather" in engine.resident_tasks
        client.post("/admin/unpin", json={"task": "weather"}).raise_for_status()
        assert client.post("/admin/unpin", json={"task": "weather"}).status_code == 409
        assert client.post("/admin/pin", json={"task": "wether"}).status_code == 404
        assert client.post("/admin/pin", json={"task": "weather", "more": 1}).status_code == 400


def test_a_task_is_prefetched(assistant_bundle: Path) -> None:
    with serving(assistant_bundle, Settings(admin_token=ADMIN)) as running, running.http(ADMIN) as client:
        engine = running.service.engine
        running.openai.embeddings.create(model="weather", input="sun")
        lacking = set(engine.bundle.pages_of("number")) - set(engine.bundle.pages_of("weather"))
        found = client.post("/admin/prefetch", json={"task": "number"}).json()
        assert found == {"task": "number", "queued_bytes": len(lacking) * engine.bundle.page_bytes}
        end = time.monotonic() + 60
        while "number" not in engine.resident_tasks:
            assert time.monotonic() < end
        assert engine.monitor.current == "weather"
        assert client.post("/admin/prefetch", json={"task": "nmber"}).status_code == 404
        pages = {name: set(engine.bundle.pages_of(name)) for name in engine.bundle.tasks}
        more = max(map(len, pages.values())) - len(pages["weather"] | pages["number"]) + 1
        budget = smallest_budget(engine.bundle) - more * engine.bundle.page_bytes  # one page short of both
        client.post("/admin/budget", json={"budget": str(budget)}).raise_for_status()
        client.post("/admin/pin", json={"task": "weather"}).raise_for_status()
        refused = client.post("/admin/prefetch", json={"task": "number"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "conflict")
        assert "smallest budget that would do" in refused.json()["error"]["message"]


def test_the_budget_changes_while_the_server_runs(assistant_bundle: Path) -> None:
    with serving(assistant_bundle, Settings(admin_token=ADMIN)) as running, running.http(ADMIN) as client:
        least = smallest_budget(running.service.engine.bundle)
        running.openai.embeddings.create(model="weather", input="sun")
        assert client.post("/admin/budget", json={"budget": str(least)}).json() == {"budget_bytes": least}
        assert running.openai.embeddings.create(model="animal", input="cat").data
        report = running.service.engine.report()
        assert report.memory.total <= report.budget == least
        small = client.post("/admin/budget", json={"budget": "1KiB"})
        assert small.status_code == 400
        assert "smallest budget that would do" in small.json()["error"]["message"]
        assert client.post("/admin/budget", json={"budget": "lots"}).status_code == 400


def test_tasks_that_the_budget_never_holds_are_named(assistant_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = wp.Bundle.open(assistant_bundle)
    budget = smallest_budget(bundle) - bundle.page_bytes
    most = max(len(bundle.pages_of(name)) for name in bundle.tasks)
    large = {name for name in bundle.tasks if len(bundle.pages_of(name)) == most}
    assert large < set(bundle.tasks)
    with (
        serving(assistant_bundle, Settings(admin_token=ADMIN), budget=budget) as running,
        running.http(ADMIN) as client,
    ):

        def missing() -> set[str]:
            listed = {model["id"] for model in client.get("/v1/models").json()["data"] if not model["available"]}
            assert listed == {task["name"] for task in client.get("/status").json()["tasks"] if not task["available"]}
            return listed

        def warned() -> set[str]:
            found = {name for name in bundle.tasks if f"task {name!r} can't run" in caplog.text}
            caplog.clear()
            return found

        assert missing() == warned() == large
        for name in bundle.tasks:
            found = client.post("/v1/embeddings", json={"model": name, "input": "sun"})
            assert found.status_code == (507 if name in large else 200)
            if name in large:
                assert found.json()["error"]["code"] == "budget_too_small"
                assert f"The smallest budget that would do is {budget + bundle.page_bytes} bytes" in found.text
                assert "retry-after" not in found.headers
                assert found.headers["x-should-retry"] == "false"
        enough = client.post("/admin/budget", json={"budget": str(budget + bundle.page_bytes)})
        assert enough.status_code == 200
        assert missing() == warned() == set()
        for name in large:
            assert running.openai.embeddings.create(model=name, input="sun").data
        client.post("/admin/budget", json={"budget": str(budget)}).raise_for_status()
        assert missing() == warned() == large


def test_a_task_that_loses_its_room_while_it_waits_is_told_so(assistant_bundle: Path) -> None:
    bundle = wp.Bundle.open(assistant_bundle)
    name = max(bundle.tasks, key=lambda name: len(bundle.pages_of(name)))
    body = {"model": name, "input": "sun"}
    with serving(assistant_bundle, Settings(admin_token=ADMIN)) as running, ThreadPoolExecutor(2) as pool:
        go = threading.Event()
        running.service.worker.between(go.wait)
        with running.http(ADMIN) as client:
            waiting = pool.submit(client.post, "/v1/embeddings", json=body)
            while not running.service.queue.waiting():
                time.sleep(0.005)
            less = running.service.worker.between(
                lambda: running.service.set_budget(str(smallest_budget(bundle) - bundle.page_bytes))
            )
            go.set()
            less.result()
            assert waiting.result().status_code == 507


def test_verify_finds_a_damaged_page(assistant: Running) -> None:
    engine = assistant.service.engine
    with assistant.http(ADMIN) as client:
        client.post("/admin/load", json={"task": "number"}).raise_for_status()
        assert client.post("/admin/verify").json()["damaged"] == []
        page = int(engine.blocks.resident()[0])
        engine._memory.arena.pages[int(engine.blocks.page_table[page]), 0] ^= 1
        assert client.post("/admin/verify").json()["damaged"] == [page]
        engine.repair()


@pytest.mark.slow
def test_reload_takes_over_new_tasks(assistant_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))
    more = tiny.assistant(tmp_path)
    more["tasks"] = {"mood": tiny.classification(tmp_path, "mood", {"up": ["sun"], "down": ["rain"]})}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(more))
    with serving(bundle, Settings(admin_token=ADMIN)) as running, running.http(ADMIN) as client:
        wp.compile(tmp_path / "more.yaml", base=bundle, out=bundle, force=True)
        assert client.post("/admin/reload").json() == {"added": ["mood"], "removed": [], "changed": []}
        assert running.openai.embeddings.create(model="mood", input="sun").data


def test_reload_says_why_it_is_refused_and_the_server_goes_on(assistant_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))
    link = tmp_path / "link.bundle"
    link.symlink_to(bundle)
    with serving(link, Settings(admin_token=ADMIN)) as running, running.http(ADMIN) as client:
        link.unlink()
        link.symlink_to(tmp_path / "nothing.bundle")
        refused = client.post("/admin/reload")
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (409, "bundle")
        for words in ("goes on with the bundle that it has", str(link), "expected a bundle directory"):
            assert words in error["message"]
        assert running.openai.embeddings.create(model="weather", input="sun").data
        repack(bundle, bundle, page=8192, force=True)
        link.unlink()
        link.symlink_to(bundle)
        refused = client.post("/admin/reload")
        assert (refused.status_code, "repack --page 4KiB" in refused.json()["error"]["message"]) == (409, True)


def test_a_reload_that_would_take_a_pinned_task_is_a_conflict(assistant_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))
    with serving(bundle, Settings(admin_token=ADMIN)) as running, running.http(ADMIN) as client:
        client.post("/admin/pin", json={"task": "weather"}).raise_for_status()
        collect(bundle, ["weather"])
        refused = client.post("/admin/reload")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
        assert "goes on with the bundle that it has: " in refused.json()["error"]["message"]
        assert running.openai.embeddings.create(model="weather", input="sun").data
        client.post("/admin/unpin", json={"task": "weather"}).raise_for_status()
        assert client.post("/admin/reload").json()["removed"] == ["weather"]


def test_a_reload_whose_storage_fails_is_a_conflict(assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable() -> None:
        raise StoreError("pages.bin: Input/output error")

    with serving(assistant_bundle, Settings(admin_token=ADMIN)) as running, running.http(ADMIN) as client:
        monkeypatch.setattr(running.service.engine, "reload", unreadable)
        refused = client.post("/admin/reload")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "bundle")


def test_the_state_is_told_while_a_task_leaves(
    assistant_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))
    with wp.Engine.from_pretrained(bundle) as engine:
        service, forecast = Service(engine, Settings()), engine.forecast

        def forecast_later() -> object:
            collect(bundle, ["weather"])
            engine.reload()
            return forecast()

        monkeypatch.setattr(engine, "forecast", forecast_later)
        found = status_of(service)
    assert [task.name for task in found.tasks] == list(engine.bundle.tasks)
    assert "weather" not in engine.bundle.tasks


@pytest.mark.parametrize("route", ["status", "models"])
def test_a_task_that_leaves_while_tasks_are_listed_is_left_out(
    assistant_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    bundle = Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))
    with wp.Engine.from_pretrained(bundle) as engine:
        service, fits = Service(engine, Settings()), engine.check_fits

        def reloaded_first(name: str) -> None:
            if "weather" in engine.bundle.tasks:
                collect(bundle, ["weather"])
                engine.reload()
            fits(name)

        monkeypatch.setattr(engine, "check_fits", reloaded_first)
        if route == "status":
            found = [task.name for task in status_of(service).tasks]
        else:
            found = [model.id for model in asyncio.run(models(service)).data]
    assert found == list(engine.bundle.tasks)
    assert "weather" not in found


def test_an_unknown_task_is_blamed_on_its_field(assistant: Running) -> None:
    with assistant.http(ADMIN) as client:
        for route in ("load", "prefetch", "pin", "unpin"):
            found = client.post(f"/admin/{route}", json={"task": "wether"})
            assert (found.status_code, found.json()["error"]["param"]) == (404, "task")
        found = client.post("/v1/embeddings", json={"model": "wether", "input": "sun"})
        assert (found.status_code, found.json()["error"]["param"]) == (404, "model")


@pytest.mark.slow
def test_who_waits_while_a_task_gets_other_classes_is_not_answered_by_the_old_ones(
    assistant_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))
    other = tiny.assistant(tmp_path)
    other["tasks"] = {
        "weather": tiny.classification(tmp_path, "weather", {"snow": ["snow"], "dry": ["sun"], "wet": ["rain"]})
    }
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    body = {"model": "weather", "input": "snow"}
    with serving(bundle, Settings(admin_token=ADMIN)) as running, running.http(ADMIN) as client:
        collect(bundle, ["weather"])
        wp.compile(tmp_path / "other.yaml", base=bundle, out=bundle, force=True)
        go = threading.Event()
        running.service.worker.between(go.wait)
        with ThreadPoolExecutor(2) as pool:
            waiting = pool.submit(client.post, "/v1/classifications", json=body)
            while not running.service.queue.waiting():
                time.sleep(0.005)
            change = running.service.worker.between(running.service.engine.reload)
            go.set()
            assert change.result().changed == ("weather",)
            refused = waiting.result()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "busy")
        assert "compiled anew" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"]
        labels = {score["label"] for score in client.post("/v1/classifications", json=body).json()["data"][0]["scores"]}
        assert labels == {"snow", "dry", "wet"}


def test_the_trace_is_one_that_the_compiler_reads(assistant_bundle: Path, tmp_path: Path) -> None:
    with serving(assistant_bundle, Settings(admin_token=ADMIN)) as running, running.http(ADMIN) as client:
        for task in ("weather", "animal", "weather"):
            running.openai.embeddings.create(model=task, input="sun")
        (tmp_path / "out.jsonl").write_bytes(client.get("/admin/trace").content)
    assert read_trace(tmp_path / "out.jsonl", ["weather", "animal"]) == ["weather", "animal", "weather"]


def test_users_need_the_token_if_there_is_one(assistant_bundle: Path) -> None:
    with serving(assistant_bundle, Settings(token=TOKEN, admin_token=ADMIN)) as running:
        for token, wanted in ((None, 401), ("wrong", 401), (TOKEN, 200), (ADMIN, 200)):
            with running.http(token) as client:
                for path in ("/v1/models", "/metrics", "/status"):
                    assert client.get(path).status_code == wanted
                assert client.get("/health").status_code == client.get("/ready").status_code == 200
                assert client.get("/").status_code == 200
        with running.http(TOKEN) as client:
            assert client.post("/admin/verify").status_code == 401


def test_a_token_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    assert read_token(path) == TOKEN
    for content in ("short", "two words that are long enough", ""):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"\(umask 077; openssl rand"):
            read_token(path)
    with pytest.raises(ConfigError, match="readable file"):
        read_token(tmp_path / "none")


def test_tokens_are_never_printed() -> None:
    assert "token-for" not in repr(Settings(token=TOKEN, admin_token=ADMIN))
    with pytest.raises(ConfigError, match="differ"):
        Settings(token=TOKEN, admin_token=TOKEN)

"""A server of several bundles: answers are those of engines of their own, whoever sleeps and wakes meanwhile."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import TypeAdapter
from rich.console import Console

import weightpager as wp
from running import ADMIN, Running, served
from waiting import until
from weightpager.cli.commands.top import view
from weightpager.server.bundle_folder import BundleFolder
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Policy, Settings
from weightpager.server.status import Status

TEXTS = ["the cat sat", "a red car", "it rains"]
ALONE = Settings(policy=Policy(batch=1), admin_token=ADMIN, grace=5)


@pytest.fixture(scope="module")
def paths(assistant_bundle: Path, wordy_bundle: Path, writer_bundle: Path) -> list[Path]:
    """Bundles of different page sizes; two have tasks of the same names, one writes."""
    return [assistant_bundle, wordy_bundle, writer_bundle]


@contextmanager
def several(paths: list[Path], budget: int | None = None, **options: Any) -> Iterator[Running]:
    service = {name: options.pop(name) for name in ("idle", "folder") if name in options}
    models = wp.Models.from_pretrained(paths, budget=budget, **options)
    with served(Service(models, ALONE, **service)) as running:
        yield running


def least(paths: list[Path]) -> int:
    with pytest.raises(wp.BudgetError) as refused:
        wp.Models.from_pretrained(paths, budget=1000)
    assert refused.value.smallest is not None
    return refused.value.smallest


def classes(running: Running, task: str) -> list[Any]:
    with running.http() as client:
        answer = client.post("/v1/classifications", json={"model": task, "input": TEXTS})
        assert answer.status_code == 200, answer.text
        return [each.get("label") or [word["label"] for word in each["words"]] for each in answer.json()["data"]]


def written(running: Running, task: str = "writer/animals", tokens: int = 8) -> str:
    found = running.openai.completions.create(model=task, prompt=TEXTS[0], max_tokens=tokens, temperature=0)
    return found.choices[0].text


@pytest.fixture(scope="module")
def expected(paths: list[Path]) -> dict[str, Any]:
    """The answers of a server of one bundle to what tests ask."""
    found: dict[str, Any] = {}
    for path in paths:
        with served(Service(wp.load(path), ALONE)) as running:
            for task in running.service.tasks:
                found[f"{path.stem}/{task}"] = ask(running, task)
    return found


def ask(running: Running, task: str) -> Any:
    return written(running, task) if running.service.task(task).writes else classes(running, task)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_answers_are_those_of_a_server_of_one(paths: list[Path], expected: dict[str, Any], share: float) -> None:
    smallest, most = least(paths), wp.Models.from_pretrained(paths).budget
    with several(paths, smallest + round(share * (most - smallest))) as running, ThreadPoolExecutor(12) as clients:
        assert list(running.service.tasks) == list(expected)
        for _ in range(2):
            answers = clients.map(lambda task: (task, ask(running, task)), list(expected) * 3)
            assert all(answer == expected[task] for task, answer in answers)
        models = running.service.runs
        assert isinstance(models, wp.Models)
        assert sum(models.shares.values()) <= models.budget


def test_a_task_has_its_short_name_where_one_bundle_has_it(paths: list[Path], expected: dict[str, Any]) -> None:
    with several(paths) as running:
        assert written(running, "animals") == expected["writer/animals"]
        with pytest.raises(openai.NotFoundError, match="several bundles have it: assistant/animal, wordy/animal"):
            running.openai.embeddings.create(model="animal", input="a cat")
        with pytest.raises(openai.NotFoundError, match="unknown task 'assistant/nothing'"):
            running.openai.embeddings.create(model="assistant/nothing", input="a cat")
        assert running.openai.embeddings.create(model="wordy/animal", input="a cat").data
        listed = running.openai.models.list().data
        assert [model.id for model in listed] == list(expected)
        assert all(model.model_dump()["awake"] for model in listed)
        with running.http() as client:
            assert client.get("/v1/models/wordy/animal").json()["id"] == "wordy/animal"


def test_who_has_no_room_waits_for_what_is_under_way(paths: list[Path], expected: dict[str, Any]) -> None:
    with several(paths, least(paths)) as running:
        whole = written(running, tokens=40)
        stream = running.openai.completions.create(
            model="writer/animals", prompt=TEXTS[0], max_tokens=40, temperature=0, stream=True
        )
        pieces = [next(stream).choices[0].text]
        with ThreadPoolExecutor(1) as client:
            other = client.submit(classes, running, "assistant/animal")
            pieces += [chunk.choices[0].text for chunk in stream]
            assert "".join(pieces) == whole
            assert other.result() == expected["assistant/animal"]


def test_what_is_idle_sleeps_until_it_is_asked(paths: list[Path], expected: dict[str, Any]) -> None:
    with several(paths, idle=0.05) as running, running.http() as client:

        def awake() -> list[bool]:
            return [model["awake"] for model in client.get("/v1/models").json()["data"]]

        until(lambda: not any(awake()))
        state = client.get("/status").json()
        assert sum(state["memory"].values()) == 0
        assert [bundle["awake"] for bundle in state["bundles"]] == [False] * 3
        for task, answer in expected.items():
            assert ask(running, task) == answer


def test_one_bundle_sleeps_too_and_its_tasks_have_their_names(paths: list[Path], expected: dict[str, Any]) -> None:
    with several(paths[:1], idle=0.05, real_time=["animal"]) as running:
        assert classes(running, "animal") == classes(running, "assistant/animal") == expected["assistant/animal"]
        time.sleep(1.5)
        assert running.service.bundles["assistant"].is_awake, "for real time"
    with several(paths[:1], idle=0.05) as running:
        until(lambda: not running.service.bundles["assistant"].is_awake)
        assert [model.id for model in running.openai.models.list()] == ["animal", "weather", "number", "colour"]
        assert classes(running, "animal") == expected["assistant/animal"]


def test_the_admin_adds_removes_and_puts_to_sleep(paths: list[Path], expected: dict[str, Any], tmp_path: Path) -> None:
    with several(paths[:2]) as running, running.http(ADMIN) as client:

        def post(route: str, **body: object) -> Any:
            return client.post(f"/admin/{route}", json=body or None)

        three = dict.fromkeys(("assistant", "wordy", "writer"), True)
        assert post("add", path=str(paths[2])).json()["bundles"] == three
        assert written(running) == expected["writer/animals"]
        for path in (paths[2], tmp_path / "nothing.bundle"):
            assert post("add", path=str(path)).status_code == 400
        assert post("pin", task="writer/animals").json()["task"] == "writer/animals"
        assert post("sleep", bundle="writer").json()["error"]["code"] == "conflict"
        assert post("remove", bundle="writer").json()["error"]["code"] == "conflict"
        assert post("unpin", task="writer/animals").status_code == 200
        assert post("sleep", bundle="writer").json()["bundles"]["writer"] is False
        assert post("prefetch", task="writer/animals").json()["error"]["code"] == "conflict"
        assert post("load", task="writer/animals").json()["loaded_bytes"] > 0
        assert post("reload").json() == {"added": [], "removed": [], "changed": []}
        assert post("verify").json()["bundles"] == {"assistant": [], "wordy": [], "writer": []}
        assert post("budget", budget=str(least(paths))).json()["budget_bytes"] == least(paths)
        assert post("budget", budget="1KiB").json()["error"]["code"] == "conflict"
        assert "writer" not in post("remove", bundle="writer").json()["bundles"]
        assert post("sleep", bundle="writer").json()["error"]["param"] == "bundle"
        with pytest.raises(openai.NotFoundError):
            written(running)
        assert classes(running, "wordy/animal") == expected["wordy/animal"]


def test_the_state_and_the_metrics_tell_of_each_bundle(paths: list[Path]) -> None:
    with several(paths) as running, running.http(ADMIN) as client:
        classes(running, "wordy/animal")
        client.post("/admin/sleep", json={"bundle": "writer"})
        state = TypeAdapter(Status).validate_json(client.get("/status").content)
        assert state.bundles is not None
        assert {bundle.name: bundle.awake for bundle in state.bundles} == {
            "assistant": True, "wordy": True, "writer": False,
        }  # fmt: skip
        assert sum(state.memory.values()) == sum(bundle.used for bundle in state.bundles) <= state.budget
        assert state.current == "wordy/animal"
        console = Console(width=100, record=True)
        console.print(view(state, 100))
        shown = console.export_text()
        assert "wordy" in shown
        assert "asleep" in shown
        families = {each.name: each for each in text_string_to_metric_families(client.get("/metrics").text)}
        assert {sample.labels["bundle"]: sample.value for sample in families["weightpager_bundle_awake"].samples} == {
            "assistant": 1, "wordy": 1, "writer": 0,
        }  # fmt: skip
        assert {sample.labels["bundle"] for sample in families["weightpager_budget_bytes"].samples} == {
            "assistant", "wordy",
        }  # fmt: skip
        assert {sample.labels["purpose"] for sample in families["weightpager_memory_bytes"].samples} >= {"arena"}


def test_a_folder_is_followed(paths: list[Path], expected: dict[str, Any], tmp_path: Path) -> None:
    folder = BundleFolder(tmp_path)
    (tmp_path / "assistant.bundle").symlink_to(paths[0])
    states = folder.bundles()
    folder.know({path: path.stem for path in states}, states)
    with several(list(states), folder=folder) as running:

        def names() -> set[str]:
            return {name.partition("/")[0] for name in running.service.tasks}

        assert classes(running, "assistant/animal") == expected["assistant/animal"]
        shutil.copytree(paths[2], tmp_path / ".coming")
        (tmp_path / ".coming").rename(tmp_path / "writer.bundle")
        (tmp_path / "damaged.bundle").mkdir()
        (tmp_path / "damaged.bundle" / "manifest.json").write_text("{}")
        until(lambda: names() == {"assistant", "writer"})
        assert written(running) == expected["writer/animals"]
        (tmp_path / "assistant.bundle").unlink()
        (tmp_path / "other.bundle").symlink_to(paths[1])
        until(lambda: names() == {"other", "writer"})
        assert classes(running, "other/animal") == expected["wordy/animal"]
        assert written(running) == expected["writer/animals"]

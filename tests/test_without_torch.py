"""What a device does where torch and transformers aren't installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny
import weightpager as wp
from bare import python, weightpager
from weightpager.bundle.report.compile_report import read_report
from weightpager.kernels.choice import NATIVE

native = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")


def test_the_package_and_the_engine_are_imported() -> None:
    ran = python("import weightpager; weightpager.Engine, weightpager.Bundle")
    assert ran.returncode == 0, ran.stderr


@native
def test_what_a_device_does_not_need_is_not_imported(assistant_bundle: Path) -> None:
    unwanted = ["pydantic", "_hashlib", "asyncio", "email", "ssl", "rich", "typer"]
    ran = python(f"""
import sys, weightpager
with weightpager.Engine.from_pretrained({str(assistant_bundle)!r}) as engine:
    engine.predict("animal", ["a b c"])
print(*(name for name in {unwanted} if name in sys.modules))
""")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "BUNDLE", "--json"),
        ("inspect", "BUNDLE", "--budget", "512KiB"),
        ("verify", "BUNDLE", "--json"),
        ("plan", "BUNDLE", "--to", "weather", "--json"),
        ("simulate", "BUNDLE", "--trace", "TRACE", "--json"),
        ("ls", "FOLDER"),
        ("ps",),
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
def test_verbs_that_run_no_task_work(arguments: tuple[str, ...], assistant_bundle: Path, tmp_path: Path) -> None:
    trace = tmp_path / "day.jsonl"
    visits = [{"task": "animal", "time": 0}, {"task": "weather", "time": 1}]
    trace.write_text("".join(json.dumps(visit) + "\n" for visit in visits))
    places = {"BUNDLE": assistant_bundle, "FOLDER": assistant_bundle.parent, "TRACE": trace}
    ran = weightpager(*(places.get(each, each) for each in arguments))
    assert ran.returncode == 0, ran.stderr
    assert "torch" not in ran.stderr


@native
def test_the_doctor_tests_the_native_kernels(tmp_path: Path) -> None:
    ran = weightpager("doctor", "--path", tmp_path, "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert [test["kernel"] for test in told["self_tests"]] == told["kernels"]["available"] == list(NATIVE)
    assert all(test["failures"] == [] for test in told["self_tests"])
    assert told["kernels"]["gpu"] is None


def test_a_gpu_is_refused_with_what_to_do(assistant_bundle: Path) -> None:
    ran = python(f"import weightpager; weightpager.Engine.from_pretrained({str(assistant_bundle)!r}, device='cuda')")
    assert "ConfigError: device: 'cuda' needs torch, which isn't installed" in ran.stderr


@native
@pytest.mark.parametrize("which", ["assistant", "wordy"])
def test_tasks_are_switched_and_run(which: str, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(f"{which}_bundle")
    ran = python(f"""
import numpy as np, weightpager
with weightpager.Engine.from_pretrained({str(bundle)!r}) as engine:
    for name in [*engine.bundle.tasks, *engine.bundle.tasks]:
        logits = engine.activate(name)(input_ids=np.array([[2, 4, 9, 3]]))["logits"]
        assert logits.dtype == np.float32 and np.isfinite(logits).all()
        print(name, logits.shape, engine.verify(), len(engine.report().switches))
""")
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 8


def test_torchs_backend_is_refused_with_what_to_do(assistant_bundle: Path) -> None:
    ran = python(f"import weightpager; weightpager.Engine.from_pretrained({str(assistant_bundle)!r}, backend='torch')")
    assert "ConfigError: backend: 'torch' needs torch and transformers" in ran.stderr


@native
@pytest.mark.parametrize(
    ("which", "task", "given"),
    [("assistant", "weather", "red cat"), ("wordy", None, "red cat"), ("writer", "animals", "red cat")],
)
def test_run_answers(which: str, task: str | None, given: str, request: pytest.FixtureRequest) -> None:
    bundle = request.getfixturevalue(f"{which}_bundle")
    name = task or next(iter(wp.Bundle.open(bundle).tasks))
    ran = weightpager("run", bundle, "--task", name, "--json", given)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["engine"]["backend"] == "native"
    assert told["predictions"][0]["label"]


@native
def test_images_are_read(camera_bundle: Path, tmp_path: Path) -> None:
    picture = tiny.picture(tmp_path / "a.png", "red", size=(20, 18))
    ran = weightpager("run", camera_bundle, "--task", "colour", "--image", picture)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] in ("red", "green", "blue")


@native
@pytest.mark.parametrize("which", ["assistant", "writer", "camera"])
def test_tasks_are_measured(which: str, request: pytest.FixtureRequest) -> None:
    """As by the compile, which read the same data with transformers' tokenizer or image processor."""
    bundle = request.getfixturevalue(f"{which}_bundle")
    ran = weightpager("eval", bundle, "--json", "--quiet")
    assert ran.returncode == 0, ran.stderr
    found = {task["name"]: task for task in json.loads(ran.stdout)["tasks"]}
    for task in read_report(wp.Bundle.open(bundle)).tasks:
        own = found[task.name]
        assert (own["metric"], own["dense"], own["items"]) == (task.metric, task.dense, task.items)
        assert own["sparse"] == pytest.approx(task.sparse, rel=1e-4)
        assert own["sparse_interval"] == pytest.approx(task.sparse_interval, rel=1e-4)


@native
def test_a_server_answers(writer_bundle: Path) -> None:
    ran = python(f"""
import asyncio, json, sys
from weightpager.engine import Engine
from weightpager.server.http.app import create_app
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Settings
service = Service(Engine.from_pretrained({str(writer_bundle)!r}), Settings())
create_app(service)
service.start()
print(service.engine.report().backend, [name for name in ("torch", "transformers") if sys.modules.get(name)])
service.close()
""")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split(maxsplit=1) == ["native", "[]\n"]

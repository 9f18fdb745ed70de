"""What a device does where torch and transformers aren't installed.

Nothing here needs them: ``run.sh`` runs these tests on an install without them. Elsewhere the tests hide them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from conftest import Bundles

from bare import python, started, weightpager
from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager.kernels.choice import NATIVE
from weightpager.machine.packages import is_installed

native = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
images = pytest.mark.skipif(not is_installed("PIL"), reason="weightpager[images] isn't installed")
pulling = pytest.mark.skipif(not is_installed("tuf"), reason="weightpager[pull] isn't installed")
serving = pytest.mark.skipif(not is_installed("fastapi"), reason="weightpager[serve] isn't installed")


def told(ran: subprocess.CompletedProcess[str]) -> Any:
    """What a command that went well says in JSON."""
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_package_and_the_engine_are_imported() -> None:
    ran = python("import weightpager; weightpager.Engine, weightpager.Bundle")
    assert ran.returncode == 0, ran.stderr


@native
def test_what_a_device_does_not_need_is_not_imported(bundles: Bundles) -> None:
    unwanted = ["pydantic", "_hashlib", "asyncio", "email", "ssl", "rich", "typer", "multiprocessing", "numpy.ma"]
    ran = python(f"""
import sys, weightpager
with weightpager.Engine.from_pretrained({str(bundles("assistant"))!r}) as engine:
    engine.predict("animal", ["a b c"])
print(*(name for name in {unwanted} if name in sys.modules))
""")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("cache", "--json"),
        ("inspect", "BUNDLE", "--json"),
        ("inspect", "BUNDLE", "--budget", "512KiB"),
        ("verify", "BUNDLE", "--json"),
        ("plan", "BUNDLE", "--to", "weather", "--json"),
        ("simulate", "BUNDLE", "--trace", "TRACE", "--json"),
        ("diff", "BUNDLE", "BUNDLE"),
        ("ls", "FOLDER"),
        ("ps",),
    ],
    ids=lambda arguments: " ".join(arguments[:1]),
)
def test_verbs_that_run_no_task_work(arguments: tuple[str, ...], bundles: Bundles, tmp_path: Path) -> None:
    trace = tmp_path / "day.jsonl"
    visits = [{"task": "animal", "time": 0}, {"task": "weather", "time": 1}]
    trace.write_text("".join(json.dumps(visit) + "\n" for visit in visits))
    bundle = bundles("assistant")
    places = {"BUNDLE": bundle, "FOLDER": bundle.parent, "TRACE": trace}
    ran = weightpager(*(places.get(each, each) for each in arguments))
    assert ran.returncode == 0, ran.stderr
    assert "torch" not in ran.stderr


def test_a_task_is_removed(bundles: Bundles, tmp_path: Path) -> None:
    bundle = shutil.copytree(bundles("assistant"), tmp_path / "own.bundle")
    ran = weightpager("remove", bundle, "weather")
    assert ran.returncode == 0, ran.stderr
    assert "weather" not in Bundle.open(bundle).tasks


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("compile", "tasks.yaml", "--out", "a.bundle"), "compile"),
        (("trim", "tasks.yaml", "--out", "model"), "compile"),
        (("export", "a.bundle", "--task", "spam", "--out", "spam"), "torch"),
        (("demo",), "demo"),
    ],
    ids=lambda arguments: arguments[0] if isinstance(arguments, tuple) else arguments,
)
def test_verbs_that_need_torch_say_what_to_install(arguments: tuple[str, ...], extra: str) -> None:
    ran = weightpager(*arguments)
    assert ran.returncode == 2
    assert f"install 'weightpager[{extra}]' to use this command" in " ".join(ran.stderr.split())


@pytest.mark.slow
@native
def test_the_doctor_tests_the_native_kernels(tmp_path: Path) -> None:
    found = told(weightpager("doctor", "--path", tmp_path, "--json"))
    assert [test["kernel"] for test in found["self_tests"]] == found["kernels"]["available"] == list(NATIVE)
    assert all(test["failures"] == [] for test in found["self_tests"])
    assert found["kernels"]["gpu"] is None


@pytest.mark.parametrize(
    ("code", "package", "purpose"),
    [
        ("(bundle, device='cuda')", "torch", "for the device 'cuda', or use the device 'cpu'"),
        ("(bundle, backend='torch')", "torch", "for the backend 'torch', or use the backend 'native'"),
    ],
    ids=["device", "backend"],
)
def test_what_needs_torch_is_refused_with_what_to_do(code: str, package: str, purpose: str, bundles: Bundles) -> None:
    ran = python(
        f"from weightpager import Engine; bundle = {str(bundles('assistant'))!r}; Engine.from_pretrained{code}"
    )
    missing = f"ConfigError: expected the package {package!r}, found none; install 'weightpager[torch]'"
    assert f"{missing} {purpose}\n" in ran.stderr


@native
def test_a_tokenizer_gives_what_a_task_takes(bundles: Bundles) -> None:
    ran = python(f"""
import weightpager as wp
with wp.load({str(bundles("assistant"))!r}) as engine:
    inputs = engine.tokenizer()(["red cat", "sun"])
    print(inputs["attention_mask"].tolist())
    with engine.task("animal") as task:
        logits = task(**inputs)["logits"]
    answers = engine.predict("animal", ["red cat", "sun"])
    assert [engine.tasks["animal"].classes[row.argmax()] for row in logits] == [each.label for each in answers]
""")
    assert (ran.stdout, ran.stderr) == ("[[1, 1, 1, 1], [1, 1, 1, 0]]\n", "")


@native
@pytest.mark.parametrize("which", ["assistant", "wordy"])
def test_tasks_are_switched_and_run(which: str, bundles: Bundles) -> None:
    ran = python(f"""
import numpy as np, weightpager
with weightpager.Engine.from_pretrained({str(bundles(which))!r}) as engine:
    for name in [*engine.bundle.tasks, *engine.bundle.tasks]:
        logits = engine.activate(name)(input_ids=np.array([[2, 4, 9, 3]]))["logits"]
        assert logits.dtype == np.float32 and np.isfinite(logits).all()
        print(name, logits.shape, engine.verify(), len(engine.report().switches))
""")
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 8


@native
@pytest.mark.parametrize("which", ["assistant", "wordy", "writer"])
def test_run_answers(which: str, bundles: Bundles) -> None:
    name = next(iter(Bundle.open(bundles(which)).tasks))
    found = told(weightpager("run", bundles(which), "--task", name, "--json", "red cat"))
    assert found["engine"]["backend"] == "native"
    assert found["predictions"][0]["label"]


@pytest.mark.slow
@native
def test_images_are_read_where_pillow_is(bundles: Bundles, tmp_path: Path) -> None:
    picture = tmp_path / "red.ppm"
    picture.write_bytes(b"P6 20 18 255\n" + bytes([220, 20, 20]) * 360)
    ran = weightpager("run", bundles("camera"), "--task", "colour", "--image", picture, "--json")
    if is_installed("PIL"):
        assert told(ran)["predictions"][0]["label"] in ("red", "green", "blue")
    else:
        assert ran.returncode == 2
        assert "install 'weightpager[images]'" in " ".join(ran.stderr.split())


@pytest.mark.slow
@native
def test_a_device_measures_its_own_switches(bundles: Bundles) -> None:
    """`bench` runs what needs no torch, and says of the rest what to install."""
    ran = weightpager("bench", bundles("assistant"), "--quick", "--json")
    rows = {row["method"]: row for row in told(ran)["rows"]}
    assert rows["ours"]["status"] == "measured"
    assert rows["ours"]["found"]["backend"] == "native"
    assert rows["dense_int4"]["reason"] == "no package torch; install 'weightpager[bench]'"


@pytest.mark.slow
@native
@pytest.mark.parametrize("which", ["assistant", "writer", pytest.param("camera", marks=images)])
def test_tasks_are_measured(which: str, bundles: Bundles) -> None:
    """As by the compile, which read the same data with transformers' tokenizer or image processor."""
    bundle = bundles(which)
    found = {task["name"]: task for task in told(weightpager("eval", bundle, "--json", "--quiet"))["tasks"]}
    for task in read_report(Bundle.open(bundle)).tasks:
        own = found[task.name]
        assert (own["metric"], own["dense"], own["items"]) == (task.metric, task.dense, task.items)
        assert own["sparse"] == pytest.approx(task.sparse, rel=1e-4)
        assert own["sparse_interval"] == pytest.approx(task.sparse_interval, rel=1e-4)


@pytest.mark.skipif(is_installed("tuf"), reason="weightpager[pull] is installed")
def test_a_pull_says_what_to_install(tmp_path: Path) -> None:
    ran = weightpager("pull", tmp_path, "assistant", "--into", tmp_path)
    assert ran.returncode == 2
    assert "install 'weightpager[pull]' to use this command" in " ".join(ran.stderr.split())


@pytest.mark.slow
@native
@pulling
def test_a_pull_brings_a_bundle_up_to_date_and_a_rollback_goes_back(repository: Path, tmp_path: Path) -> None:
    """The rows are answered by an engine, as soon as the version is there."""
    device, rows = ("--into", tmp_path, "--json"), tmp_path / "rows.jsonl"
    trust = repository / "metadata" / "1.root.json"
    told(weightpager("pull", repository, "assistant", "--version", "1", "--trust", trust, *device))
    smaller = Bundle.open(tmp_path / "assistant.bundle")
    label = told(weightpager("run", smaller.path, "--task", "animal", "--json", "red cat"))["predictions"][0]["label"]
    rows.write_text(json.dumps({"task": "animal", "text": "red cat", "label": label}) + "\n")
    pulled = told(weightpager("pull", repository, "assistant", "--check-rows", rows, *device))
    assert (pulled["version"], "weather" in Bundle.open(tmp_path / "assistant.bundle").tasks) == ("2", True)
    assert told(weightpager("rollback", "assistant", *device))["now"] == "1"
    assert Bundle.open(tmp_path / "assistant.bundle").tasks.keys() == smaller.tasks.keys()


@pytest.mark.skipif(is_installed("fastapi"), reason="weightpager[serve] is installed")
def test_a_server_says_what_to_install(bundles: Bundles) -> None:
    ran = weightpager("serve", bundles("writer"))
    assert ran.returncode == 2
    assert "install 'weightpager[serve]' to use this command" in " ".join(ran.stderr.split())


@pytest.fixture(scope="module")
def server(bundles: Bundles) -> Iterator[str]:
    """URL of a server of texts that are continued."""
    with started("serve", bundles("writer"), "--port", "0", "--log-level", "warning") as process:
        assert process.stdout is not None
        yield process.stdout.readline().split("/ serves")[0]


@native
@serving
def test_a_server_answers(server: str) -> None:
    body = {"model": "animals", "prompt": "red cat", "max_tokens": 3}
    asked = Request(f"{server}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(asked, timeout=60) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] >= 1


@pytest.mark.slow
@native
@serving
def test_a_server_is_looked_at(server: str) -> None:
    assert told(weightpager("top", server, "--json"))["backend"] == "native"
    assert weightpager("top", server, "--once").returncode == 0
    assert server in [each["url"] for each in told(weightpager("ps", "--json"))]

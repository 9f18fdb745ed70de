"""The documentation of serving is what a server does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tiny_pairs
import weightpager as wp
from running import Running, serving
from weightpager.server.routes import admin_routes, encoding_routes, generation_routes, watch_routes

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_the_example_runs(writer: Running, capsys: pytest.CaptureFixture[str]) -> None:
    code = EXAMPLES[0]
    plain = code.replace("http://127.0.0.1:8000", writer.url).replace('"german"', '"animals"')
    scope: dict[str, object] = {}
    exec(compile(plain, "serving.md", "exec"), scope)
    assert "animals" in capsys.readouterr().out
    choice = scope["answer"].choices[0]  # type: ignore[attr-defined]
    assert isinstance(choice.message.content, str)
    vector = scope["vector"]
    assert isinstance(vector, list)
    assert len(vector) == 64
    scope["client"].close()  # type: ignore[attr-defined]


def test_a_task_that_writes_classifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_pairs.llama(tmp_path / "llama", max_position_embeddings=512)
    bundle = wp.compile(tiny_pairs.tasks(tmp_path, model), tmp_path / "a.bundle", cache=False)
    with serving(bundle.path) as running:
        scope = {
            "client": running.openai,
        }
        exec(compile(EXAMPLES[1].replace('"german"', '"hill"'), "serving.md", "exec"), scope)
    assert capsys.readouterr().out.strip() in ("sport", "politics")


def test_every_route_is_named() -> None:
    routers = (admin_routes, encoding_routes, generation_routes, watch_routes)
    paths = {str(getattr(route, "path", "")) for one in routers for route in one.router.routes} - {"/"}
    missing = [path for path in paths if path.split("{")[0].rstrip("/") not in PAGE]
    assert not missing


def test_every_metric_is_named(assistant: Running) -> None:
    with assistant.http() as client:
        names = set(re.findall(r"^# HELP (weightpager_\w+)", client.get("/metrics").text, re.MULTILINE))
    named = set(re.findall(r"weightpager_\w+", PAGE))
    missing = {name for name in names if name not in named and not name.endswith("_created")}
    assert not missing

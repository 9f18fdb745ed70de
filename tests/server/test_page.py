"""The page in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

import pytest

import tiny
import weightpager as wp
from running import serving
from weightpager.bundle import Bundle
from weightpager.runtime.budget import smallest_budget
from weightpager.server.routes import watch_routes
from weightpager.server.status import Status, TaskStatus

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dom(url: str, folder: Path, *settings: str) -> str:
    """The page as a browser has it after three seconds."""
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    options = [*settings, "--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom", url]
    found = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=100)
    assert "CONSOLE" not in found.stderr, found.stderr
    return found.stdout


class Tab:
    """A page that is told what to do, by Chrome's DevTools protocol over a pair of pipes."""

    def __init__(self, questions: RawIOBase, answers: BufferedReader) -> None:
        self._questions, self._answers, self._count, self._session = questions, answers, 0, ""
        (page,) = (target for target in self.call("Target.getTargets")["targetInfos"] if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]

    def call(self, method: str, **given: Any) -> Any:
        self._count += 1
        session = {"sessionId": self._session} if self._session else {}
        said = {"id": self._count, "method": method, "params": given} | session
        self._questions.write(json.dumps(said).encode() + b"\0")
        while True:
            answer = json.loads(b"".join(iter(lambda: self._answers.read(1), b"\0")))
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def js(self, code: str) -> Any:
        return self.call("Runtime.evaluate", expression=code, returnByValue=True)["result"].get("value")

    def becomes(self, code: str) -> Any:
        """The first value of an expression that is true."""
        for _ in range(300):
            if value := self.js(code):
                return value
            time.sleep(0.1)
        raise AssertionError(f"{code} stays {value!r}")

    def give(self, files: list[Path]) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#pictures")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=list(map(str, files)))

    def asks(self, task: str, text: str = "") -> str:
        """The answer that the page shows, without its time."""
        fill = f"$('task').value = {task!r}; $('task').dispatchEvent(new Event('change')); $('text').value = {text!r}"
        self.js(f"{fill}; $('answer').replaceChildren(); document.querySelector('#try button').click()")
        self.becomes("!document.querySelector('#try button').disabled && $('answer').textContent")
        shown = self.js("$('answer').querySelector('.soft')?.remove(); $('answer').textContent")
        return str(shown)


@contextmanager
def tab(url: str, folder: Path) -> Iterator[Tab]:
    (theirs, asked), (answered, answers) = os.pipe(), os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    silent = (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)
    ends = [(os.POSIX_SPAWN_DUP2, theirs, 3), (os.POSIX_SPAWN_DUP2, answers, 4), silent]
    command = [str(BROWSER), *options, "--remote-debugging-pipe", url]
    process = os.posix_spawn(command[0], command, os.environ, file_actions=ends)
    os.close(theirs)
    os.close(answers)
    try:
        with os.fdopen(asked, "wb", buffering=0) as questions, os.fdopen(answered, "rb") as found:
            page = Tab(questions, found)
            page.becomes("document.readyState === 'complete' && $('task').value")
            yield page
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_the_page_reads_what_a_status_has() -> None:
    page = (Path(watch_routes.__file__).parent / "page.html").read_text(encoding="utf-8")
    for name, status in (("task", TaskStatus), ("state", Status)):
        used = set(re.findall(rf"\b{name}\.(\w+)", page)) - {"bad"}
        assert used <= {field.name for field in fields(status)}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_its_form_asks_every_kind_of_task(
    assistant_bundle: Path, camera_bundle: Path, watcher_bundle: Path, tmp_path: Path
) -> None:
    picture = tiny.picture(tmp_path / "frame.png", "blue", "asked", (44, 40))
    with serving(assistant_bundle) as running, tab(running.url, tmp_path / "texts") as page:
        assert page.js("$('seeing').hidden")
        assert "sunny" in page.asks("weather", "the sun shines") or "rain" in page.asks("weather", "the sun shines")
    with serving(camera_bundle) as running, tab(running.url, tmp_path / "images") as page:
        task = str(page.js("$('task').value"))
        assert page.asks(task) == "expected a picture, found none: choose a file"
        page.give([picture])
        with wp.load(camera_bundle) as engine:
            assert engine.predict(task, [str(picture)])[0].label in page.asks(task)
    with serving(watcher_bundle) as running, tab(running.url, tmp_path / "pictures") as page:
        page.give([picture])
        for task in Bundle.open(watcher_bundle).tasks:
            with wp.load(watcher_bundle) as engine:
                told = engine.generate(task, "what?", images=[picture])
            assert page.asks(task, "what?").removeprefix("what?") == told.label


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_the_state(assistant_bundle: Path, tmp_path: Path) -> None:
    with serving(assistant_bundle) as running:
        for task in ("weather", "animal"):
            running.openai.embeddings.create(model=task, input="sun")
        page = dom(running.url, tmp_path)
    assert re.search(r'id="state"[^>]*>ready<', page)
    for words in (
        "weather, layer 0",
        "weather → animal: ",
        "1 switches in all",
        "arena",
        "% foretold, 1 times so far",
        "log loss",
        'title="memory for pages"',
        "last minute <b>",
        "half in <b>",
        "errors <b>none</b>",
    ):
        assert words in page
    assert re.search(r">process</span> <b>[\d.]+ (MiB|GiB)</b>", page)
    assert page.count("<rect") == 2
    assert 'class="scores" id="next"' in page  # one grid: all bars begin at one edge
    assert 'class="bad"' not in page
    assert 'class="scroll wider' not in page


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_a_matrix_wider_than_the_screen_and_a_small_budget_are_told(assistant_bundle: Path, tmp_path: Path) -> None:
    least = smallest_budget(Bundle.open(assistant_bundle))
    with serving(assistant_bundle, budget=least) as running, running.http() as client:
        for task in ("weather", "animal", "number", "colour"):
            running.openai.embeddings.create(model=task, input="sun")
        client.post("/v1/embeddings", json={"model": "wether", "input": "sun"})
        state = client.get("/status").json()
        assert state["working_set_pages"] > state["slots"]
        # No window is narrower than 500 pixels here; large letters are as good.
        page = dom(running.url, tmp_path, "--window-size=500,900", "--blink-settings=minimumFontSize=40")
    assert re.search(r'<li class="bad"><span[^>]*>working set</span> <b>\d+ pages: more than fit', page)
    assert '<li class="bad">status 404 <b>1 ×</b>' in page
    assert re.search(r'class="scroll wider more" tabindex="0"><table class="cells" id="matrix"', page)

"""The page in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from running import serving
from weightpager.bundle import Bundle
from weightpager.runtime.budget import smallest_budget

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def dom(url: str, folder: Path, *settings: str) -> str:
    """The page as a browser has it after three seconds."""
    assert BROWSER is not None
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
    options = [*settings, "--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom", url]
    found = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=100)
    assert "CONSOLE" not in found.stderr, found.stderr
    return found.stdout


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

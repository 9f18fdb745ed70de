"""The page in a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from running import serving

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_the_state(assistant_bundle: Path, tmp_path: Path) -> None:
    assert BROWSER is not None
    with serving(assistant_bundle) as running:
        for task in ("weather", "animal"):
            running.openai.embeddings.create(model=task, input="sun")
        command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        options = ["--virtual-time-budget=3000", "--enable-logging=stderr", "--dump-dom", running.url]
        found = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=100)
    assert "CONSOLE" not in found.stderr, found.stderr
    page = found.stdout
    assert re.search(r'id="state"[^>]*>ready<', page)
    for words in (
        "weather, layer 0",
        "weather → animal: ",
        "1 switches in all",
        "arena",
        "% foretold, 1 times so far",
        "log loss",
    ):
        assert words in page
    assert page.count("<rect") == 2

"""How commands speak."""

from __future__ import annotations

import io
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from weightpager.cli import output
from weightpager.cli.output import MEANINGS


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("tasks", [1, 2, 9, 64])
def test_a_matrix_of_any_size_shows_every_name_and_number(
    monkeypatch: pytest.MonkeyPatch, width: int, tasks: int
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(output, "console", lambda: Console(file=shown, width=width, soft_wrap=True))
    names = [f"task-{number}" for number in range(tasks)]
    output.matrix("bytes to load", names, [[f"{a}.{b} KiB" for b in range(tasks)] for a in range(tasks)])
    text = shown.getvalue()
    assert text.count("bytes to load") == 1
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    found = set(re.findall(r"\d+\.\d+ KiB", text))
    assert found == {f"{a}.{b} KiB" for a in range(tasks) for b in range(tasks)}
    assert set(re.findall(r"task-\d+", text)) == set(names)


def test_columns_without_names_have_no_row_for_them(capsys: pytest.CaptureFixture[str]) -> None:
    output.table("sizes", ["", ""], [["both fit", True], ["direct", False], ["pages", 1]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert [line.strip("│ ").split()[-1] for line in lines[2:5]] == ["yes", "no", "1"]
    output.table("tasks", ["", "pages"], [["animal", 1]])
    assert "pages" in capsys.readouterr().out


def test_words_are_explained_as_the_architecture_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    for word in ("alignment", "arena", "duality gap", "overlap", "over-read", "private"):
        assert re.search(rf"^\| [^|]*{word}", words, re.MULTILINE), word
        output.explain(word)
        assert capsys.readouterr().out.startswith(f"{word}: {MEANINGS[word]}")


def test_an_interval_of_which_nothing_is_known_is_no_number() -> None:
    assert output.measured(1.0, (-math.inf, math.inf)) == "1.0000 (too few texts to tell)"
    assert output.measured(0.5, (0.25, 0.75)) == "0.5000 (0.250 to 0.750)"


def test_that_torch_is_loaded_is_told_in_a_terminal_alone() -> None:
    code = "import time; from weightpager.cli.output import loading_torch\nwith loading_torch(): time.sleep(0.3)"
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=theirs, check=True)
        assert b"load torch" in os.read(ours, 4096)
        assert done.stdout == b""
    finally:
        os.close(ours)
        os.close(theirs)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""

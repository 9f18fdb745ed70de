"""How commands speak."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from weightpager.cli import output


@pytest.mark.parametrize("width", [40, 80, 160])
@pytest.mark.parametrize("tasks", [1, 2, 9, 64])
def test_a_matrix_of_any_size_shows_every_name_and_number(
    monkeypatch: pytest.MonkeyPatch, width: int, tasks: int
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(output, "console", Console(file=shown, width=width, soft_wrap=True))
    names = [f"task-{number}" for number in range(tasks)]
    output.matrix("bytes to load", names, [[f"{a}.{b} KiB" for b in range(tasks)] for a in range(tasks)])
    text = shown.getvalue()
    assert text.count("bytes to load") == 1
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    found = set(re.findall(r"\d+\.\d+ KiB", text))
    assert found == {f"{a}.{b} KiB" for a in range(tasks) for b in range(tasks)}
    assert set(re.findall(r"task-\d+", text)) == set(names)

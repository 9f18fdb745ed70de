from __future__ import annotations

import pytest
from command import Command, run


@pytest.fixture
def weightpager(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return lambda *arguments: run(capsys, monkeypatch, *arguments)

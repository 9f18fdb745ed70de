"""Runs the command in this process, as a shell would see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from weightpager.cli import app


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Outcome:
    monkeypatch.setattr(sys, "argv", ["weightpager", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        app.run()
        sys.exit(0)
    code = ended.value.code
    return Outcome(code if isinstance(code, int) else 0, *capsys.readouterr())

"""Checks of a version that has just come: a user's command, or a few rows with the labels that they must get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from weightpager.errors import ConfigError, WeightpagerError, first_line
from weightpager.machine.panics import panics_as_errors

_SECONDS = 600
_STANDARD_ERROR = 2
"""Where a command prints: standard output may be one JSON document."""

Check = Callable[[Path], str | None]


def checks(command: str | None, rows: Path | None) -> Check | None:
    """All that was asked for, as one; None if nothing was."""
    found: list[Check] = []
    if rows is not None:
        wanted = _rows(rows)
        found.append(lambda bundle: _answer(bundle, wanted))
    if command is not None:
        found.append(lambda bundle: _run(bundle, command))
    if not found:
        return None
    return lambda bundle: next((problem for problem in (each(bundle) for each in found) if problem is not None), None)


def _run(bundle: Path, command: str) -> str | None:
    environment = os.environ | {"WEIGHTPAGER_BUNDLE": str(bundle)}
    with subprocess.Popen(  # noqa: S602 - the user's
        command, shell=True, env=environment, stdout=_STANDARD_ERROR, start_new_session=True
    ) as shell:
        try:
            code = shell.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            return f"its check didn't end within {_SECONDS} s"
        finally:
            if shell.returncode is None:  # neither the shell nor what it has started may go on
                os.killpg(shell.pid, signal.SIGKILL)
    return f"its check ended with code {code}" if code else None


def _rows(path: Path) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # other separators may be part of a text
    except (OSError, ValueError) as error:
        raise ConfigError(f"check-rows: expected JSON lines in {path}, found none: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            task, text, label = _row(f"{path}:{number}", line)
            found[task].append((text, label))
    if not found:
        raise ConfigError(f"check-rows: expected at least one row in {path}, found none")
    return found


def _row(where: str, line: str) -> list[str]:
    """Task, text and label of a line."""
    try:
        row: Any = json.loads(line)
        values = [row[key] for key in ("task", "text", "label")]
    except (ValueError, TypeError, LookupError, RecursionError):
        values = [None]
    if not all(isinstance(value, str) for value in values):
        raise ConfigError(f"check-rows: {where}: expected JSON with task, text and label, found {line[:80]!r}")
    return values


def _answer(bundle: Path, rows: dict[str, list[tuple[str, str]]]) -> str | None:
    from weightpager.engine import Engine

    try:
        with panics_as_errors(), Engine.from_pretrained(bundle) as engine:
            for task, of_task in rows.items():
                answers = engine.predict(task, [text for text, _ in of_task])
                for (text, label), answer in zip(of_task, answers, strict=True):
                    if answer.label != label:
                        return f"{task}: expected {label!r} for {text[:60]!r}, found {answer.label!r}"
    except WeightpagerError as error:
        return f"its rows can't be answered: {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is, such a version must not stay in use
        return f"its rows can't be answered: {type(error).__name__}: {first_line(error)}"
    return None

"""The commit that a figure is told with, in a checkout that is made up."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.row_file import commit
from weightpager_lab.machine_facts import describe

SOURCE, ROWS = "source.py", "docs/rows.json"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    for file in (SOURCE, ROWS):
        (tmp_path / file).write_text("1\n")
    _git("init", "--quiet")
    _git("add", ".")
    _git("-c", "user.name=Nobody", "-c", "user.email=nobody@localhost", "commit", "--quiet", "--message=One")
    return tmp_path


def _git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True)


def test_rows_that_are_written_leave_the_commit_as_it_is(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = commit()
    (checkout / ROWS).write_text("2\n")
    assert commit() == before
    monkeypatch.chdir(checkout / "docs")
    assert commit() == before


def test_changed_sources_are_told(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = commit()
    (checkout / SOURCE).write_text("2\n")
    assert commit() == f"{before}-dirty"
    monkeypatch.chdir(checkout / "docs")
    assert commit() == f"{before}-dirty"


def test_a_machine_is_described_by_the_same_rule(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = checkout / "src" / "weightpager"
    package.mkdir(parents=True)
    monkeypatch.setattr("weightpager_lab.machine_facts.__file__", str(package / "machine_facts.py"))
    before = describe()["commit"]
    (checkout / ROWS).write_text("2\n")
    assert describe()["commit"] == before
    (checkout / SOURCE).write_text("2\n")
    assert describe()["commit"] == f"{before}-dirty"


def test_without_a_checkout_the_commit_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"

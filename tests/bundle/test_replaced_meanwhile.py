"""A bundle that another command replaces while it is read, or while another one is made of it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from weightpager.backends.verify import verify
from weightpager.bundle import Bundle, BundleWriter, reader, writing
from weightpager.bundle.files import new_directory
from weightpager.bundle.files.new_directory import locked
from weightpager.bundle.files.regular_file import storage_errors_as
from weightpager.bundle.garbage import collect
from weightpager.compiler.repack import repack
from weightpager.errors import BundleError, BundleFormatError, CompileError

Command = Callable[[Path], object]

MADE_OF_IT: dict[str, Command] = {
    "gc": lambda path: collect(path, ["animal"]),
    "gc elsewhere": lambda path: collect(path, ["animal"], out=path.with_name("other.bundle")),
    "repack": lambda path: repack(path, path, force=True),
    "repack elsewhere": lambda path: repack(path, path.with_name("other.bundle")),
}


@pytest.fixture
def path(assistant_bundle: Path, tmp_path: Path) -> Path:
    """A bundle, beside which lies what takes its place."""
    for name, gone in (("a.bundle", None), ("next", "weather")):
        shutil.copytree(assistant_bundle, tmp_path / name)
        if gone is not None:
            collect(tmp_path / name, [gone])
    return tmp_path / "a.bundle"


def replaced(path: Path) -> None:
    shutil.rmtree(path)
    path.with_name("next").rename(path)


def once_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, first: Callable[[], None]) -> None:
    """Have something happen right before the next call of a function."""
    original = getattr(owner, name)

    def late(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(owner, name, original)
        first()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, late)


@pytest.mark.parametrize("moment", ["finish", "put_placement"])
@pytest.mark.parametrize("command", MADE_OF_IT)
def test_it_is_neither_linked_nor_thrown_away(
    path: Path, monkeypatch: pytest.MonkeyPatch, command: str, moment: str
) -> None:
    once_before(monkeypatch, BundleWriter, moment, lambda: replaced(path))
    with pytest.raises(BundleError, match="found another one, by which a command has replaced it meanwhile"):
        MADE_OF_IT[command](path)
    assert "weather" not in Bundle.open(path).tasks
    assert "animal" in Bundle.open(path).tasks
    assert not verify(path).problems
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("command", MADE_OF_IT)
def test_an_error_of_its_own_stays_one(path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def fail() -> None:
        raise CompileError("the disk is full")

    once_before(monkeypatch, BundleWriter, "finish", fail)
    with pytest.raises(CompileError, match="the disk is full"):
        MADE_OF_IT[command](path)


def test_one_that_was_removed_is_not_called_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once_before(monkeypatch, BundleWriter, "finish", lambda: shutil.rmtree(path))
    with pytest.raises(BundleFormatError, match="expected a readable file, found No such file"):
        repack(path, path.with_name("other.bundle"))


def test_an_error_of_its_own_stays_one_where_it_was_removed_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        shutil.rmtree(path)
        raise CompileError("the disk is full")

    once_before(monkeypatch, BundleWriter, "finish", fail)
    with pytest.raises(CompileError, match="the disk is full"):
        repack(path, path.with_name("other.bundle"))


def test_one_that_is_in_its_place_may_be_replaced_while_the_old_one_is_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_before(monkeypatch, new_directory, "_remove", lambda: collect(path, ["weather"]) and None)
    collect(path, ["animal"])
    assert not {"animal", "weather"} & set(Bundle.open(path).tasks)
    assert len(list(path.parent.iterdir())) == 2


def test_a_process_that_was_forked_while_it_was_written_holds_nothing(path: Path) -> None:
    with writing(path, force=True, origin=Bundle.open(path)) as writer:
        shutil.copytree(path.with_name("next"), writer.root, dirs_exist_ok=True)
        child = os.fork()
        if child == 0:
            signal.pause()
    try:
        collect(path, ["animal"])
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_one_that_another_command_is_about_to_replace_stays(path: Path) -> None:
    taken, errors = CompileError("taken"), lambda: storage_errors_as(CompileError, "the bundle")
    with locked(path, 0, taken, errors), pytest.raises(CompileError, match="another command writing there"):
        collect(path, ["animal"])
    assert "animal" in Bundle.open(path).tasks


def test_one_that_comes_in_its_place_before_it_is_locked_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CompileError, match="another command writing there"), writing(path, force=True) as writer:
        writer.put("manifest.json", b"{}")
        once_before(monkeypatch, os, "fstat", lambda: replaced(path))
    assert "weather" not in Bundle.open(path).tasks


@pytest.mark.parametrize("part", ["read_page_index", "read_placement"])
def test_opening_begins_again(path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    once_before(monkeypatch, reader, part, lambda: replaced(path))
    assert "weather" not in Bundle.open(path).tasks


def test_a_directory_that_has_another_number_at_each_look_is_given_up(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = count()
    monkeypatch.setattr(reader, "place_of", lambda _: (0, next(numbers)))
    (path / "page-index.safetensors").write_bytes(b"")
    with pytest.raises(BundleFormatError, match="page-index"):
        Bundle.open(path)


def test_verifying_begins_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once_before(monkeypatch, reader.Bundle, "_check", lambda: replaced(path))
    found = verify(path)
    assert not found.problems
    assert found.pages == len(Bundle.open(path).index.ids)


def test_a_damaged_one_that_stays_is_refused(path: Path) -> None:
    (path / "page-index.safetensors").write_bytes(b"")
    with pytest.raises(BundleFormatError, match="page-index"):
        Bundle.open(path)
    assert verify(path).problems

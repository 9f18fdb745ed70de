"""A journal's folder: one compile holds it at a time, however others come and go meanwhile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from weightpager.bundle.files import new_directory as locks
from weightpager.compiler.resume.journal import Journal
from weightpager.errors import CompileError


def test_a_folder_that_its_last_holder_has_removed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, folder = locks.lock, tmp_path / "j"

    def late(descriptor: int, *, required: bool) -> bool:
        monkeypatch.setattr(locks, "lock", lock)
        folder.rmdir()
        return lock(descriptor, required=required)

    monkeypatch.setattr(locks, "lock", late)
    with Journal(folder, "ours").held():
        assert folder.is_dir()
        with pytest.raises(CompileError, match="another compile that holds"), Journal(folder, "theirs").held():
            pytest.fail("two hold it")
    assert not folder.exists()


def test_a_folder_that_the_next_compile_has_made_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, remove = tmp_path / "j", shutil.rmtree

    def removing(path: Path, **how: Any) -> None:
        remove(path, **how)
        path.mkdir()

    with monkeypatch.context() as patch, Journal(folder, "ours").held():
        patch.setattr(shutil, "rmtree", removing)
    assert folder.is_dir()


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "j").touch()
    with pytest.raises(CompileError, match="File exists"), Journal(tmp_path / "j", "ours").held():
        pytest.fail("there is none")

"""Directories beside others: what is left of killed processes, and what isn't."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from weightpager.bundle.files import new_directory as module
from weightpager.bundle.files.new_directory import lock, new_directory, scratch


def test_what_killed_processes_left_is_removed_and_what_others_use_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".work-killed"
    left.mkdir()
    (left / "large").write_bytes(b"1")
    (tmp_path / ".worked").mkdir()
    with scratch(tmp_path, ".work-") as one:
        assert not left.exists()
        with scratch(tmp_path, ".work-") as other:
            assert one.is_dir()
            assert one != other
        assert not other.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == [".worked"]


def test_a_directory_that_was_taken_for_a_leftover_before_it_was_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_and_removed(**options: Any) -> str:
        monkeypatch.setattr(tempfile, "mkdtemp", MKDTEMP)
        made = MKDTEMP(**options)
        Path(made).rmdir()
        return made

    monkeypatch.setattr(tempfile, "mkdtemp", made_and_removed)
    with scratch(tmp_path, ".work-") as folder:
        assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("held", [False, True])
def test_a_directory_that_was_taken_for_a_leftover_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    """By a process that has removed it, or that holds it and is about to."""

    def taken(descriptor: int, *, required: bool) -> bool:
        monkeypatch.setattr(module, "lock", lock)
        (made,) = tmp_path.iterdir()
        made.rmdir()
        return not held and lock(descriptor, required=required)

    monkeypatch.setattr(module, "lock", taken)
    with scratch(tmp_path, ".work-") as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_two_may_begin_at_once(tmp_path: Path) -> None:
    for _ in range(20):
        barrier = Barrier(2, timeout=200)

        def write(number: int, barrier: Barrier = barrier) -> None:
            barrier.wait()
            with scratch(tmp_path, ".work-") as folder:
                (folder / "file").write_text(str(number))
                barrier.wait()
                assert (folder / "file").read_text() == str(number)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(write, range(2)))
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_of_work_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), scratch(tmp_path, ".work-") as folder:
        (folder / "half").write_text("done")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_exchanged_a_failure_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_rename_exchange", lambda *_: False)  # as on a file system that can't
    target = tmp_path / "a"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(FileNotFoundError), new_directory(target, nullcontext, replace=True) as new:
        shutil.rmtree(new)
    assert [entry.name for entry in target.iterdir()] == ["old"]
    with new_directory(target, nullcontext, replace=True) as new:
        (new / "new").touch()
    assert [entry.name for entry in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_living_process_has_moved_aside_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the two steps of an exchange; a killed one's is put back."""
    monkeypatch.setattr(module, "_rename_exchange", lambda *_: False)
    rename, seen = Path.rename, []
    target = tmp_path / "a"
    target.mkdir()

    def watched(path: Path, to: Path) -> Path:
        moved = rename(path, to)
        if path == target:
            module.restore(target)
            seen.append(target.exists())
        return moved

    monkeypatch.setattr(Path, "rename", watched)
    with new_directory(target, nullcontext, replace=True) as new:
        (new / "new").touch()
    assert seen == [False]
    assert [entry.name for entry in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
    target.rename(tmp_path / ".a.old-killed")
    module.restore(target)
    assert [entry.name for entry in target.iterdir()] == ["new"]


def exchanged(folder: Path) -> bool:
    """Whether two directories were exchanged in one step."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / name).touch()
    if not module._rename_exchange(folder / "one", folder / "two"):
        return False
    assert [path.name for path in (*(folder / "one").iterdir(), *(folder / "two").iterdir())] == ["two", "one"]
    return True


class WithoutWrapper:
    """A C library without a function for the system call."""

    def __init__(self, *_: object, **__: object) -> None:
        self.syscall = CDLL(None, use_errno=True).syscall


CDLL = ctypes.CDLL
MKDTEMP = tempfile.mkdtemp


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="the call's number isn't known")
def test_a_c_library_without_the_function_exchanges_in_one_step_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "usual").mkdir()
    if not exchanged(tmp_path / "usual"):
        pytest.skip("this file system can't exchange")
    monkeypatch.setattr(ctypes, "CDLL", WithoutWrapper)
    assert exchanged(tmp_path)
    with pytest.raises(FileNotFoundError):
        module._rename_exchange(tmp_path / "nowhere", tmp_path / "two")


def test_a_machine_whose_number_of_the_call_is_not_known_takes_two_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", WithoutWrapper)
    monkeypatch.setattr(module, "_RENAMEAT2", {})
    assert not exchanged(tmp_path)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_refused_exchange_is_made_in_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(module, "_renameat2", lambda _: refuse)
    target = tmp_path / "a"
    target.mkdir()
    with new_directory(target, nullcontext, replace=True) as new:
        (new / "new").touch()
    assert [entry.name for entry in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("step", "left"), [(1, "old"), (2, "new")])
def test_where_nothing_can_be_exchanged_ctrl_c_right_after_a_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, left: str
) -> None:
    """As `Path.rename` itself does more once the system has renamed."""
    monkeypatch.setattr(module, "_rename_exchange", lambda *_: False)
    steps, rename = iter([*range(step - 1), None]), Path.rename
    target = tmp_path / "a"
    target.mkdir()
    (target / "old").touch()

    def interrupted(path: Path, to: Path) -> Path:
        found = rename(path, to)
        if next(steps, 0) is None:
            raise KeyboardInterrupt
        return found

    with pytest.raises(KeyboardInterrupt), new_directory(target, nullcontext, replace=True) as new:
        (new / "new").touch()
        monkeypatch.setattr(Path, "rename", interrupted)
    assert [entry.name for entry in target.iterdir()] == [left]

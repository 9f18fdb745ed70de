"""A directory's storage: what is written is removed, and what can't be measured is said."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from weightpager.doctor import storage
from weightpager.doctor.storage import directory_of, examine_storage, probe_bytes
from weightpager.errors import ConfigError, StoreError

MIB = 1 << 20


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_PIECE", MIB)
    monkeypatch.setattr(storage, "_MOST", 2 * MIB)


@pytest.fixture
def empty(disk: Path) -> Iterator[Path]:
    """A directory on a local disk that must be empty again at the end."""
    directory = disk / "bundles"
    directory.mkdir()
    yield directory
    assert os.listdir(directory) == []
    directory.rmdir()


def test_a_disk_is_measured_past_the_page_cache(empty: Path) -> None:
    steps: list[None] = []
    found = examine_storage(empty, lambda: steps.append(None))
    assert found.problem == ""
    assert found.direct
    assert found.kind in {"btrfs", "ext4", "xfs"}
    assert found.sequential is not None
    assert found.pages is not None
    assert (found.sequential.block_bytes, found.sequential.threads) == (MIB, 1)
    assert found.pages.block_bytes == 64 << 10
    assert found.pages.threads > 1
    assert found.pages.total_bytes in {MIB, 2 * MIB}
    assert found.short is not None
    assert (found.short.block_bytes, found.short.threads, found.short.total_bytes) == (4096, 1, MIB)
    assert found.seconds_per_read == pytest.approx(4096 / found.short.median)
    assert len(steps) == storage.STEPS


def test_a_file_in_memory_is_doubted_without_naming_the_temporary_file(memory_file_system: Path) -> None:
    found = examine_storage(memory_file_system)
    assert found.kind == "tmpfs"
    if found.pages is None:  # before Linux 6.6
        assert found.direct is False
    else:
        assert found.pages.doubt.startswith("tmpfs keeps its files in memory")


def test_a_file_system_without_direct_reads_is_said(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> object:
        assert path.stat().st_size > 0
        raise StoreError(f"cannot open {path}: its file system has no O_DIRECT")

    monkeypatch.setattr(storage, "direct_read_bandwidth", refuse)
    found = examine_storage(empty)
    assert (found.direct, found.pages) == (False, None)
    assert found.problem == "cannot open a file there: its file system has no O_DIRECT"


def test_reads_that_cannot_be_measured_are_said(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(storage, "direct_read_bandwidth", refuse)
    found = examine_storage(empty)
    assert (found.direct, found.pages) == (None, None)
    assert found.problem == "reads can't be measured there: Operation not permitted"


def test_an_interruption_leaves_no_file(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(path: Path, *_: object, **__: object) -> object:
        assert os.listdir(empty) == [path.name]
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "direct_read_bandwidth", press)
    with pytest.raises(KeyboardInterrupt):
        examine_storage(empty)


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    old, young = tmp_path / ".weightpager-doctor-old", tmp_path / ".weightpager-doctor-young"
    for file, age in ((old, 4000.0), (young, 0.0)):
        file.touch()
        os.utime(file, (time.time() - age,) * 2)
    examine_storage(tmp_path)
    assert list(tmp_path.iterdir()) == [young]  # of a run that goes on


def test_too_little_space_is_said(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * MIB))
    found = examine_storage(empty)
    assert found.problem == "too little space: expected 4.0 MiB free, got 3.0 MiB"
    assert found.direct is None


def test_a_full_disk_is_said(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "_fill", full)
    assert examine_storage(empty).problem == "a file can't be written there: No space left on device"


@pytest.mark.parametrize(("free", "size"), [(0, 0), (4 * MIB - 1, 0), (4 * MIB, MIB), (1 << 40, 2 * MIB)])
def test_a_disk_is_never_filled(free: int, size: int) -> None:
    assert probe_bytes(free) == size


def test_a_file_stands_for_its_directory(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.touch()
    assert directory_of(file) == directory_of(tmp_path) == tmp_path
    with pytest.raises(ConfigError, match="nowhere: No such file or directory"):
        directory_of(tmp_path / "nowhere")

"""Locks are held by one process at a time, and given back."""

from __future__ import annotations

import errno
import fcntl
import os
from functools import partial
from pathlib import Path

import pytest

from weightpager.bundle.files.new_directory import locked
from weightpager.bundle.files.regular_file import storage_errors_as
from weightpager.errors import DeliveryError

TAKEN = DeliveryError("taken")
errors = partial(storage_errors_as, DeliveryError, "the lock")


def test_a_second_holder_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    flags = os.O_RDWR | os.O_CREAT
    with locked(path, flags, TAKEN, errors) as descriptor:
        assert os.fstat(descriptor).st_mode & 0o777 == 0o600
        with pytest.raises(DeliveryError, match="taken"), locked(path, flags, TAKEN, errors):
            pytest.fail("two hold it")
    with locked(path, flags, TAKEN, errors):
        assert path.exists()


def test_the_body_keeps_its_own_errors(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="of the body"), locked(tmp_path, os.O_RDONLY, TAKEN, errors):
        raise OSError("of the body")
    with locked(tmp_path, os.O_RDONLY, TAKEN, errors) as descriptor:
        assert os.fstat(descriptor)


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeliveryError, match="cannot write .*none/lock: No such"):
        locked(tmp_path / "none" / "lock", os.O_RDWR | os.O_CREAT, TAKEN, errors).__enter__()


def test_a_file_system_without_locks_is_refused_where_one_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(DeliveryError, match="cannot write the lock: No locks available"):
        locked(tmp_path, os.O_RDONLY, TAKEN, errors).__enter__()
    with locked(tmp_path, os.O_RDONLY, TAKEN, errors, required=False) as descriptor:
        assert os.fstat(descriptor)

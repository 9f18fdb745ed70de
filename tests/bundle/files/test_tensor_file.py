"""Tensor files whose storage fails, or that change while they are read: an error of ours, or what has been checked."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blake3 import blake3
from safetensors.numpy import save_file

from weightpager.bundle.files import entry as entries
from weightpager.bundle.files.entry import FileEntry, hash_file
from weightpager.bundle.files.tensor_file import Header, TensorInfo, read_arrays, read_header, stored_tensors
from weightpager.errors import BundleFormatError

FILE = "a.safetensors"
ARRAYS = {
    "numbers": np.arange(5000, dtype=np.int32).reshape(50, 100),
    "flags": np.array([True, False, True]),
    "none": np.zeros((0, 7), np.float32),
    "one": np.array(2.5, np.float64),
}


def anything(_: Header) -> None:
    pass


@pytest.fixture
def entry(tmp_path: Path) -> FileEntry:
    save_file(ARRAYS, tmp_path / FILE, {"format": "np"})
    return hash_file(tmp_path / FILE)


def right(found: dict[str, Any]) -> bool:
    return found.keys() == ARRAYS.keys() and all(
        found[name].dtype == array.dtype and found[name].shape == array.shape and np.array_equal(found[name], array)
        for name, array in ARRAYS.items()
    )


def test_arrays_are_what_was_written(tmp_path: Path, entry: FileEntry) -> None:
    found = read_arrays(tmp_path, FILE, entry, anything)
    assert right(found)
    assert all(array.flags.aligned and array.flags.writeable for array in found.values())
    stated = {name: TensorInfo(array.dtype.name, array.shape) for name, array in ARRAYS.items()}
    assert read_header(tmp_path, FILE, entry) == stated
    with stored_tensors(tmp_path, FILE, entry, anything) as tensors:
        for name, array in ARRAYS.items():
            read = bytearray(array.nbytes)
            tensors.read(name, memoryview(read))
            assert read == array.tobytes()


def test_arrays_of_a_header_of_any_length_are_aligned(tmp_path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}).encode()
    header += b" " * (1 - len(header) % 8)
    (tmp_path / FILE).write_bytes(len(header).to_bytes(8, "little") + header + np.array([1.5, 2.5]).tobytes())
    found = read_arrays(tmp_path, FILE, hash_file(tmp_path / FILE), anything)["x"]
    assert found.tolist() == [1.5, 2.5]
    assert found.flags.aligned


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(bytes(8))
        file.seek(1000)
        file.write(bytes(range(200)))


@pytest.mark.parametrize("change", [overwrite, lambda path: os.truncate(path, 10)], ids=["overwritten", "shorter"])
def test_a_file_that_changes_after_its_check_is_read_as_it_was(
    tmp_path: Path, entry: FileEntry, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    class Checked:
        def __init__(self, *content: bytes) -> None:
            self._hash = blake3(*content)
            self.update = self._hash.update

        def hexdigest(self) -> str:
            found = self._hash.hexdigest()
            change(tmp_path / FILE)
            return found

    monkeypatch.setattr(entries, "blake3", Checked)
    assert right(read_arrays(tmp_path, FILE, entry, anything))


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path: Path, entry: FileEntry) -> None:
    def cut(_: Header) -> None:
        os.truncate(tmp_path / FILE, 2000)

    with pytest.raises(BundleFormatError, match="a readable file.*the file ends within"):
        read_arrays(tmp_path, FILE, entry, cut)


@pytest.mark.parametrize("bad", ["pread", "preadv"])
def test_a_header_that_storage_does_not_give_is_told(
    tmp_path: Path, entry: FileEntry, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, bad, fail)
    for read in (
        lambda: read_header(tmp_path, FILE, entry),
        lambda: read_arrays(tmp_path, FILE, entry, anything),
        lambda: stored_tensors(tmp_path, FILE, entry, anything).__enter__(),
    ):
        with pytest.raises(BundleFormatError, match=f"a readable file.*{os.strerror(errno.EIO)}"):
            read()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (2**63).to_bytes(8, "little") + b"{}",
        (200_000_000).to_bytes(8, "little") + b"{}",
        (50).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}" + b"more",
        (3).to_bytes(8, "little") + b"{]}",
        (2).to_bytes(8, "little") + b"\xff\xfe",
    ],
)
def test_what_is_no_tensor_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    entry = hash_file(tmp_path / FILE)
    with pytest.raises(BundleFormatError, match="expected a safetensors file"):
        read_header(tmp_path, FILE, entry)
    with pytest.raises(BundleFormatError, match="expected a safetensors file"):
        read_arrays(tmp_path, FILE, entry, anything)

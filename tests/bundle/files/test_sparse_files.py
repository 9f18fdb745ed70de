"""Files that are holes: they cost nobody anything to store, and must cost nobody much to refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from blake3 import blake3
from safetensors.numpy import save

from benchmarks.fuzz.sealing import Arrays, rewrite_arrays, rewrite_file, rewrite_manifest, rewrite_tensors
from weightpager.backends.torch.parameters import read_parameters
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.files.regular_file import is_hole, is_hollow
from weightpager.bundle.format import page_file
from weightpager.bundle.format.page_file import FILE as PAGE_INDEX
from weightpager.bundle.reader import read_manifest
from weightpager.bundle.repair import repair
from weightpager.errors import BundleError, BundleFormatError

TEBIBYTE = 2**40

CHILD = """
import re, resource, sys
from pathlib import Path
from weightpager.bundle import Bundle
from weightpager.backends.verify import verify
from weightpager.errors import BundleError

mapped = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
resource.setrlimit(resource.RLIMIT_AS, (mapped + (256 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sys.argv[1:]:
    try:
        Bundle.open(path)
    except BundleError as error:
        print(path, "open:", error)
    for problem in verify(path).problems[:3]:
        print(path, "verify:", problem)
"""


def check_with_little(*bundles: Path) -> str:
    """What a process that may have 256 MiB and a minute says when it opens and verifies these."""
    done = subprocess.run([sys.executable, "-c", CHILD, *bundles], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def grow(bundle: Path, name: str, size: int, content: bytes | None = None) -> None:
    """Have a file end in a hole, with an entry of that size."""
    content = (bundle / name).read_bytes() if content is None else content
    (bundle / name).write_bytes(content)
    os.truncate(bundle / name, size)
    rewrite_manifest(bundle, lambda m: m["files"].update({name: {"bytes": size, "blake3": "0" * 64}}))


def names(bundle: Path) -> list[str]:
    return list(read_manifest(bundle).files)


def copied(bundle: Path, target: Path) -> Path:
    return Path(shutil.copytree(bundle, target))


@pytest.fixture
def copy(assistant_bundle: Path, tmp_path: Path) -> Path:
    return copied(assistant_bundle, tmp_path / "copy.bundle")


@pytest.mark.parametrize(
    ("stored", "size", "hollow"),
    [(0, 2**20, False), (0, 2**21, True), (2**19, 2**21, False), (2**19 - 4096, 2**21, True), (2**21, 2**21, False)],
)
def test_a_file_is_hollow_if_less_than_a_quarter_is_stored(
    tmp_path: Path, stored: int, size: int, hollow: bool
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.seek(size - stored)
        file.write(b"x" * stored)
        file.truncate(size)
    with path.open("rb") as file:
        assert is_hollow(file, size) == hollow
        assert file.tell() == 0
        assert file.read()[:1] == (b"x" if stored == size else b"\0")
        assert is_hole(file.fileno(), 0, size) == (stored == 0)


def test_a_file_of_a_tebibyte_is_refused_unread(assistant_bundle: Path, tmp_path: Path) -> None:
    bundles = {}
    for number, name in enumerate(names(assistant_bundle)):
        bundles[name] = copied(assistant_bundle, tmp_path / str(number))
        grow(bundles[name], name, TEBIBYTE)
    said = check_with_little(*bundles.values())
    for name, path in bundles.items():
        assert any(name in line for line in said.splitlines() if line.startswith(f"{path} verify:")), name


def as_header(arrays: dict[str, tuple[str, list[int]]]) -> bytes:
    """A safetensors header of tensors that follow each other."""
    entries, end = {}, 0
    for name, (dtype, shape) in arrays.items():
        size = int(np.prod(shape)) * {"U8": 1, "I32": 4, "F32": 4, "U64": 8}[dtype]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def test_an_index_of_as_many_pages_as_a_page_file_of_holes_has_is_refused(copy: Path) -> None:
    """All counts fit: 3 GiB of index, for 280 GiB of pages."""
    pages = 3 * 2**30 // 44
    manifest = read_manifest(copy)
    header = as_header({"signatures": ("U64", [pages]), "layers": ("I32", [pages]), "ids": ("U8", [pages, 32])})
    grow(copy, PAGE_INDEX, len(header) + 44 * pages, header)
    rewrite_manifest(copy, lambda m: m.update(page_files=[pages]))
    page_file.frame(copy / page_file.file_name(0), pages, manifest.page_bytes)
    assert f"open: {copy}: {PAGE_INDEX}: size" in check_with_little(copy)


def test_parameters_that_are_a_hole_are_refused(copy: Path) -> None:
    """All of a file's shapes fit its size."""
    header = as_header({"base_model.x": ("F32", [2**20, 2**8])})
    grow(copy, "resident.safetensors", len(header) + 2**30, header)
    assert "verify: resident.safetensors: size: expected" in check_with_little(copy)
    with pytest.raises(BundleFormatError, match="holes"):
        read_parameters(Bundle.open(copy), "resident.safetensors")


def test_pages_that_are_holes_are_hashed_once(copy: Path) -> None:
    count, size = 2**9, 2**28
    ids = np.tile(np.frombuffer(blake3(bytes(size)).digest(), np.uint8), (count, 1))

    def as_zero(arrays: Arrays) -> None:
        arrays.update(ids=ids, layers=np.zeros(count, np.int32), signatures=np.zeros(count, np.uint64))

    rewrite_manifest(copy, lambda m: m.update(page_files=[count], page_bytes=size))
    rewrite_arrays(copy, PAGE_INDEX, as_zero)
    (copy / page_file.file_name(0)).unlink()
    page_file.frame(copy / page_file.file_name(0), count, size)
    result = verify(copy)
    assert result.pages == count
    assert not any("page 0" in problem for problem in result.problems)


def test_a_manifest_that_is_a_hole_is_refused(copy: Path) -> None:
    os.truncate(copy / "manifest.json", 60 * 2**20)
    with pytest.raises(BundleFormatError, match="stored bytes"):
        Bundle.open(copy)


def test_a_donors_hole_mends_nothing(assistant_bundle: Path, copy: Path, tmp_path: Path) -> None:
    donor = copied(assistant_bundle, tmp_path / "donor.bundle")
    size = (copy / "report.json").stat().st_size
    (copy / "report.json").unlink()
    os.truncate(donor / "report.json", TEBIBYTE)
    result = repair(copy, donor)
    assert f"expected {size} bytes" in result.problems[0]


def test_zeros_that_are_stored_are_well(copy: Path) -> None:
    rewrite_tensors(copy, "resident.safetensors", lambda tensors: tensors.update(x=torch.zeros(2**20)))
    assert verify(copy).problems == ()


@pytest.mark.parametrize("name", ["resident.safetensors", "tasks/animal/private.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"",
        b"\xff" * 100,
        save({"x": np.zeros(4, np.float32)})[:-1],
        save({"x": np.zeros(4, np.float16)}),
        save({"x": np.zeros(4, np.complex64)}),
        as_header({"x": ("F32", [0, 2**40, 2**40])}),
        as_header({"x": ("F32", [1] * 70 + [0])}),
    ],
    ids=["JSON", "nothing", "garbage", "cut", "halves", "complex", "wide", "deep"],
)
def test_parameters_that_the_engine_refuses_verify_refuses_too(copy: Path, name: str, content: bytes) -> None:
    rewrite_file(copy, name, content)
    with pytest.raises(BundleError) as refused:
        read_parameters(Bundle.open(copy), name)
    assert verify(copy).problems == (str(refused.value),)


@pytest.mark.parametrize("name", ["resident.safetensors", "tasks/animal/private.safetensors", "model/config.json"])
def test_a_file_that_the_manifest_leaves_out_verify_misses_too(copy: Path, name: str) -> None:
    rewrite_manifest(copy, lambda m: m["files"].pop(name))
    assert any(f"an entry for {name}" in problem for problem in verify(copy).problems)


def test_a_report_that_nobody_can_read_verify_refuses_too(copy: Path) -> None:
    rewrite_file(copy, "report.json", b"{}")
    assert any("report.json: content" in problem for problem in verify(copy).problems)


def test_verify_hashes_no_file_twice(assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the model's files, which are small: readers of inputs and graphs check these themselves."""
    from weightpager.bundle.files import entry, tensor_file

    opened, hashed = set(), []
    real, real_hash = entry.open_regular, entry.check_hash
    monkeypatch.setattr(entry, "open_regular", lambda path: opened.add(str(path)) or real(path))
    for module in (entry, tensor_file):
        monkeypatch.setattr(module, "check_hash", lambda *of: hashed.append(of[1]) or real_hash(*of))
    assert verify(assistant_bundle).problems == ()
    assert len(opened) == len(names(assistant_bundle))
    large = [name for name in hashed if not name.startswith("model/")]
    assert len(large) == len(set(large))
    assert "resident.safetensors" in large

"""Cold means that nothing of a file was cached, and mincore's page counts are what says so."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightpager.doctor.cold import cold_read, drop, resident_bytes
from weightpager.machine.storage import Mount, mount_of, mounts

PAGE = mmap.PAGESIZE
PAGES = 64


@pytest.fixture(scope="module")
def file(disk: Path) -> Path:
    """A file of whole pages on a local disk."""
    path = disk / "pages"
    path.write_bytes(os.urandom(PAGES * PAGE))
    return path


@pytest.fixture
def memory_file(memory_file_system: Path) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(dir=memory_file_system) as file:
        file.write(bytes(PAGE))
        file.flush()
        yield Path(file.name)


def read_pages(path: Path, pages: set[int]) -> None:
    """Read single pages through the page cache, without the kernel's read-ahead."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        for page in pages:
            os.pread(descriptor, PAGE, page * PAGE)
    finally:
        os.close(descriptor)


def read_directly(path: Path) -> bytes:
    """A whole file of whole pages, past the page cache."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, path.stat().st_size) as buffer:
            assert os.preadv(descriptor, [buffer], 0) == len(buffer)
            return bytes(buffer)
    finally:
        os.close(descriptor)


@settings(max_examples=25, deadline=None)
@given(pages=st.sets(st.integers(0, PAGES - 1)))
def test_just_the_pages_that_were_read_are_counted(file: Path, pages: set[int]) -> None:
    drop(file)
    read_pages(file, pages)
    assert resident_bytes(file) == len(pages) * PAGE


def test_looking_touches_no_page(file: Path) -> None:
    drop(file)
    read_pages(file, {3})
    assert [resident_bytes(file) for _ in range(3)] == [PAGE] * 3


def test_drop_empties_the_cache_even_of_what_was_just_written(disk: Path) -> None:
    path = disk / "fresh"
    path.write_bytes(bytes(10 * PAGE))
    assert resident_bytes(path) == 10 * PAGE
    drop(path)
    assert resident_bytes(path) == 0


@pytest.mark.parametrize(("length", "pages"), [(0, 0), (1, 1), (PAGE, 1), (PAGE + 1, 2)])
def test_a_last_page_counts_as_a_whole_one(disk: Path, length: int, pages: int) -> None:
    path = disk / "odd"
    path.write_bytes(bytes(length))
    assert resident_bytes(path) == pages * PAGE


def test_a_buffered_read_is_cold_and_leaves_its_pages(file: Path) -> None:
    file.read_bytes()
    with cold_read([file]) as proof:
        assert (proof.cold, proof.reason, proof.before_bytes, proof.left_bytes) == (True, "", 0, None)
        file.read_bytes()
    assert proof.left_bytes == PAGES * PAGE


def test_a_direct_read_leaves_nothing(file: Path) -> None:
    expected = file.read_bytes()
    with cold_read([file]) as proof:
        found = read_directly(file)
    assert proof.cold
    assert proof.left_bytes == 0
    assert found == expected


def test_several_files_are_counted_together(disk: Path, file: Path) -> None:
    other, empty = disk / "other", disk / "empty"
    other.write_bytes(bytes(PAGE))
    empty.touch()
    with cold_read([file, other, empty]) as proof:
        other.read_bytes()
    assert proof.cold
    assert proof.left_bytes == PAGE


def test_a_file_that_is_mapped_elsewhere_is_not_cold(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapping:
        assert len(mapping[::PAGE]) == PAGES
        with cold_read([file]) as proof:
            pass
    assert not proof.cold
    assert "stayed cached: another process" in proof.reason
    assert str(file) in proof.reason
    assert proof.before_bytes > 0


def test_a_file_in_memory_is_not_cold(memory_file: Path) -> None:
    with cold_read([memory_file]) as proof:
        pass
    assert not proof.cold
    assert "tmpfs keeps its files in memory" in proof.reason
    assert proof.before_bytes == proof.left_bytes == PAGE


def test_one_warm_file_spoils_the_proof(file: Path, memory_file: Path) -> None:
    with cold_read([file, memory_file]) as proof:
        pass
    assert not proof.cold
    assert str(file) not in proof.reason


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("overlay", "overlay", "overlay may lie on other caches"),
        ("nfs4", "server:/export", "nfs4 may lie on other caches"),
        ("zfs", "pool/data", "zfs may lie on other caches"),
        ("ext4", "/dev/loop3", "/dev/loop3 is a file of another file system"),
    ],
)
def test_a_cache_out_of_sight_is_no_proof(
    file: Path, monkeypatch: pytest.MonkeyPatch, kind: str, source: str, reason: str
) -> None:
    mount = Mount(1, "/", Path("/"), kind, source, ("rw",))
    monkeypatch.setattr("weightpager.doctor.cold.mount_of", lambda path: mount)
    with cold_read([file]) as proof:
        pass
    assert not proof.cold
    assert reason in proof.reason


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file or directory"), KeyError("mnt_id")])
def test_a_file_system_that_the_system_does_not_tell_is_no_proof(
    file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def unknown(path: Path) -> Mount:
        raise error

    monkeypatch.setattr("weightpager.doctor.cold.mount_of", unknown)
    with cold_read([file]) as proof:
        pass
    assert not proof.cold
    assert proof.reason == f"{file}: the system doesn't tell on which file system it lies"


def test_reads_that_mincore_does_not_show_are_no_proof(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.doctor.cold.resident_bytes", lambda path: 0)
    with cold_read([file]) as proof:
        pass
    assert not proof.cold
    assert "does not show in mincore" in proof.reason


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), cold_read([tmp_path / "absent"]):
        pass


def test_every_path_has_a_mount(tmp_path: Path) -> None:
    mount = mount_of(tmp_path)
    assert tmp_path.is_relative_to(mount.point)
    assert mount in mounts()


def escaped(text: str) -> str:
    for character in "\\ \t\n":
        text = text.replace(character, f"\\{ord(character):03o}")
    return text


names = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1).map(
    lambda n: f"/{n}"
)


@given(root=names, point=names, source=names, tags=st.lists(st.sampled_from(["shared:1", "master:2", "unbindable"])))
def test_mounts_with_any_name_are_read(root: str, point: str, source: str, tags: list[str]) -> None:
    fields = [
        "36",
        "25",
        "98:0",
        escaped(root),
        escaped(point),
        "rw,noatime",
        *tags,
        "-",
        "ext4",
        escaped(source),
        "rw,x=1",
    ]
    (mount,) = mounts(" ".join(fields) + "\n")
    assert mount == Mount(36, root, Path(point), "ext4", source, ("rw", "x=1"))

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weightpager.bundle import Bundle, writing
from weightpager.bundle.writer import storage_errors
from weightpager.errors import BundleError, CompileError, ConfigError


def write(target: Path, content: bytes, force: bool = False) -> None:
    with writing(target, force=force) as writer:
        writer.add("manifest.json", lambda file: file.write(content))
        writer.add("tasks/a/tables", lambda file: file.write(content))


def content(target: Path) -> bytes:
    return (target / "tasks/a/tables").read_bytes()


def test_a_bundle_appears_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.bundle", b"one")
    assert content(tmp_path / "a.bundle") == b"one"
    assert os.listdir(tmp_path) == ["a.bundle"]


def test_an_existing_bundle_is_replaced_only_by_force(tmp_path: Path) -> None:
    target = tmp_path / "a.bundle"
    write(target, b"one")
    with pytest.raises(ConfigError, match="--force"):
        write(target, b"two")
    write(target, b"two", force=True)
    assert content(target) == b"two"
    assert os.listdir(tmp_path) == ["a.bundle"]


def test_a_bundle_that_has_come_meanwhile_is_replaced_only_by_force(tmp_path: Path) -> None:
    target = tmp_path / "a.bundle"
    with pytest.raises(ConfigError, match="--force"), writing(target) as slow:
        slow.add("manifest.json", lambda file: file.write(b"two"))
        write(target, b"one")
    assert content(target) == b"one"
    assert os.listdir(tmp_path) == ["a.bundle"]


def modes(target: Path) -> dict[str, int]:
    """By name inside the bundle."""
    found = (target, *target.rglob("*"))
    return {path.relative_to(target).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in found}


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_a_new_bundle_honours_the_umask(
    tmp_path: Path, umask: Callable[[int], int], mask: int, folder: int, file: int
) -> None:
    umask(mask)
    write(tmp_path / "a.bundle", b"one")
    wanted = {".": folder, "tasks": folder, "tasks/a": folder, "tasks/a/tables": file, "manifest.json": file}
    assert modes(tmp_path / "a.bundle") == wanted


@pytest.mark.parametrize(("folder", "file"), [(0o700, 0o600), (0o2750, 0o640), (0o777, 0o444)])
def test_a_bundle_that_is_replaced_hands_on_who_may_read_it(
    tmp_path: Path, umask: Callable[[int], int], folder: int, file: int
) -> None:
    umask(0o022)
    target = tmp_path / "a.bundle"
    write(target, b"one")
    for path in (*target.rglob("*"), target):
        path.chmod(folder if path.is_dir() else file)
    before = modes(target)
    write(target, b"two", force=True)
    assert (content(target), modes(target)) == (b"two", before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_bundle_that_root_replaces_stays_its_owners(tmp_path: Path) -> None:
    target = tmp_path / "a.bundle"
    write(target, b"one")
    for path in (target, *target.rglob("*")):
        os.chown(path, 1234, 5678)
    write(target, b"two", force=True)
    assert {(path.stat().st_uid, path.stat().st_gid) for path in (target, *target.rglob("*"))} == {(1234, 5678)}


def test_a_file_that_another_bundle_shares_keeps_its_mode(tmp_path: Path, umask: Callable[[int], int]) -> None:
    umask(0o022)
    write(tmp_path / "a.bundle", b"one")
    write(tmp_path / "b.bundle", b"two")
    shared = tmp_path / "b.bundle" / "tasks/a/tables"
    (tmp_path / "a.bundle" / "manifest.json").chmod(0o600)
    with writing(tmp_path / "a.bundle", force=True) as writer:
        writer.add("manifest.json", lambda file: file.write(b"three"))
        writer.link("tables", shared)
    assert modes(tmp_path / "a.bundle")["manifest.json"] == 0o600
    assert stat.S_IMODE(shared.stat().st_mode) == 0o644


def test_a_file_that_is_taken_over_twice_leaves_both_originals(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    with writing(tmp_path / "a.bundle") as writer:
        writer.link("pages", tmp_path / "one")
        writer.link("pages", tmp_path / "two")
        writer.add("manifest.json", lambda file: file.write(b"three"))
    assert (tmp_path / "a.bundle" / "pages").read_text() == "two"
    assert (tmp_path / "one").read_text() == "one"


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path) -> None:
    target = tmp_path / "home"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="not a bundle"):
        write(target, b"one", force=True)
    assert (target / "thesis.txt").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_whatever_stops_the_writing_leaves_the_old_bundle_and_nothing_else(tmp_path: Path, error: type) -> None:
    target = tmp_path / "a.bundle"
    write(target, b"one")
    with pytest.raises(error), writing(target, force=True) as writer:
        writer.add("manifest.json", lambda file: file.write(b"two"))
        raise error
    assert content(target) == b"one"
    assert os.listdir(tmp_path) == ["a.bundle"]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    def full(file: object) -> None:
        with Path("/dev/full").open("wb", buffering=0) as device:
            device.write(b"x")

    with pytest.raises(CompileError, match="No space left"), writing(tmp_path / "a.bundle") as writer:
        writer.add("pages", full)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / ".a.bundle.tmp-x7"
    dead.mkdir()
    (dead / "pages").write_bytes(b"half")
    with writing(tmp_path / "a.bundle", force=True) as slow:
        write(tmp_path / "a.bundle", b"one")
        assert slow.root.is_dir()
        assert not dead.exists()
        slow.add("manifest.json", lambda file: file.write(b"two"))
    assert os.listdir(tmp_path) == ["a.bundle"]


class _KilledError(BaseException):
    pass


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_where_nothing_can_be_exchanged_leaves_a_bundle_to_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    target, rename, steps = tmp_path / "a.bundle", Path.rename, iter(range(step))
    write(target, b"one")

    def dies(path: Path, to: Path) -> Path:
        if next(steps, None) is None:
            raise _KilledError
        return rename(path, to)

    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr("weightpager.bundle.files.new_directory._rename_exchange", lambda *_: False)
        patch.setattr("weightpager.bundle.files.new_directory._remove", lambda _: dies(tmp_path, tmp_path))
        patch.setattr(Path, "rename", dies)
        write(target, b"two", force=True)
    assert target.exists() == (step == 2)
    if step == 1:
        (tmp_path / "link.bundle").symlink_to(target)
        for path in (target, tmp_path / "link.bundle"):
            with pytest.raises(BundleError, match="put it back: mv -T") as refused:
                Bundle.open(path)
            assert next(name for name in os.listdir(tmp_path) if ".old-" in name) in str(refused.value)
    with pytest.raises(ConfigError, match="--force"):
        write(target, b"three")
    assert content(target) == (b"two" if step == 2 else b"one")
    assert [name for name in os.listdir(tmp_path) if ".old-" in name] == []


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    write(tmp_path / "v1.bundle", b"one")
    (tmp_path / "current").symlink_to("v1.bundle")
    write(tmp_path / "current", b"two", force=True)
    assert (tmp_path / "current").is_symlink()
    assert content(tmp_path / "v1.bundle") == b"two"
    assert sorted(os.listdir(tmp_path)) == ["current", "v1.bundle"]


def test_what_lies_in_a_cache_as_a_link_is_taken_over_itself(tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "1").mkdir(parents=True)
    (tmp_path / "blob").write_bytes(b"one")
    (tmp_path / "snapshots" / "1" / "pages").symlink_to("../../blob")
    with writing(tmp_path / "a.bundle") as writer:
        writer.link("pages", tmp_path / "snapshots" / "1" / "pages")
        writer.add("manifest.json", lambda file: file.write(b"two"))
    assert not (tmp_path / "a.bundle" / "pages").is_symlink()
    assert (tmp_path / "a.bundle" / "pages").read_bytes() == b"one"


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        write(tmp_path / "nowhere" / "a.bundle", b"one")
    with pytest.raises(ConfigError, match="does not exist"):
        write(tmp_path / ("a" * 300) / "a.bundle", b"one")  # as little to be seen as what nobody may look at


def test_what_could_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CompileError, match=r"cannot write .*file/a: Not a directory"), storage_errors():
        (tmp_path / "file" / "a").write_bytes(b"")

"""A repository in a store of somebody else's: devices meet the old state or the new one, whatever stops the copying."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from command import Command
from damage import contents
from fleet import NAME, Device, Fleet, Place
from weightpager.delivery.publishing import repository
from weightpager.delivery.publishing.prune import prune
from weightpager.delivery.publishing.roles import write_file
from weightpager.delivery.publishing.upload import STAGES, upload
from weightpager.errors import ConfigError, DeliveryError


@pytest.fixture
def place(fleet: Fleet, tmp_path: Path) -> Place:
    """With the old version alone."""
    place = Place.make(tmp_path / "own")
    place.publish(fleet.old)
    return place


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fails_after(puts: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Local storage takes so many files more; what is returned mends it."""
    left, whole = [puts], LocalFileSystem.put_file

    def put_file(store: LocalFileSystem, *arguments: Any, **options: Any) -> None:
        if not left[0]:
            raise OSError("the line is cut")
        left[0] -= 1
        whole(store, *arguments, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", put_file)
    return lambda: left.__setitem__(0, -1)


def test_a_store_gets_what_it_lacks_and_devices_pull_from_it(place: Place, fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "store" / "repository"
    first = upload(place.root, store.as_uri())
    assert first.there == 0
    assert files(store) == {path: text for path, text in files(place.root).items() if path != ".lock"}
    device = Device(tmp_path / "device", place.trust)
    device.pull(store)
    assert contents(device.bundle) == contents(fleet.old)
    again = upload(place.root, store.as_uri())
    assert (again.files, again.there) == (1, first.files - 1)
    place.publish(fleet.new)
    more = upload(place.root, store.as_uri())
    assert more.bytes < first.bytes / 2
    device.pull(store)
    assert contents(device.bundle) == contents(fleet.new)


@pytest.mark.slow
def test_cut_off_anywhere_it_leaves_the_old_state_or_the_new_one(
    place: Place, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    upload(place.root, store.as_uri())
    place.publish(fleet.new)
    seen = []
    for puts in range(100):
        mend = fails_after(puts % 7 and 1, monkeypatch)
        done = None
        with suppress(DeliveryError):
            done = upload(place.root, store.as_uri())
        mend()
        device = Device(tmp_path / f"device-{puts}", place.trust)
        seen.append(device.pull(store).version)
        if done is not None:
            break
    assert seen == sorted(seen)
    assert seen[0] == "1"
    assert seen[-1] == "2"
    assert len(seen) > len(STAGES)


def test_what_a_killed_publisher_left_in_a_store_harms_nobody(
    place: Place, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(path: Path, pieces: Iterable[bytes]) -> None:
        if path.name.endswith(".snapshot.json"):
            raise KeyboardInterrupt
        write_file(path, pieces)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("weightpager.delivery.publishing.roles.write_file", dies)
        place.publish(fleet.new, "beta-1")
    store = tmp_path / "store"
    upload(place.root, store.as_uri())
    place.publish(fleet.new, "beta-2")  # as many bytes as before
    upload(place.root, store.as_uri())
    device = Device(tmp_path / "device", place.trust)
    device.pull(store, channel="beta-2")
    assert contents(device.bundle) == contents(fleet.new)


def test_what_was_pruned_goes_when_that_is_said(place: Place, fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "store"
    place.publish(fleet.new)
    upload(place.root, store.as_uri())
    (store / "mine.txt").write_text("stays")
    prune(place.root, place.keys, 0)
    assert upload(place.root, store.as_uri()).removed == 0
    done = upload(place.root, store.as_uri(), delete=True)
    assert done.removed > 0
    assert files(store).keys() - {"mine.txt"} == files(place.root).keys() - {".lock"}
    assert (store / "mine.txt").exists()
    device = Device(tmp_path / "device", place.trust)
    device.pull(store)
    assert contents(device.bundle) == contents(fleet.new)


def test_a_newer_state_is_never_replaced(place: Place, fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "store"
    older = fleet.copied(tmp_path / "older").place
    fleet.place.publish(fleet.old, "beta")
    upload(fleet.place.root, store.as_uri())
    before = files(store)
    with pytest.raises(DeliveryError, match="expected a state no newer than the repository's"):
        upload(older.root, store.as_uri())
    assert files(store) == before


def test_another_state_of_the_same_number_is_never_replaced(place: Place, fleet: Fleet, tmp_path: Path) -> None:
    store = tmp_path / "store"
    other = fleet.copied(tmp_path / "other").place
    fleet.place.publish(fleet.old, "beta")
    repository.refresh(other.root, other.keys, [], 7)
    upload(fleet.place.root, store.as_uri())
    before = files(store)
    with pytest.raises(DeliveryError, match=r"no newer than the repository's, \d+, found another \d+: another copy"):
        upload(other.root, store.as_uri())
    assert files(store) == before
    assert upload(fleet.place.root, store.as_uri()).files == 1


def test_any_store_of_fsspec_will_do(place: Place) -> None:
    done = upload(place.root, "memory://shop/repository")
    store = fsspec.filesystem("memory")
    assert len(store.find("/shop/repository")) == done.files
    assert upload(place.root, "memory://shop/repository").files == 1


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("somewhere", "expected one such as s3://"),
        ("https://example.org/repository", "a store that can be written"),
        ("nonsense://bucket", r"expected a store of fsspec \(.*s3.*\), found"),
    ],
)
def test_what_is_no_store_is_refused(place: Place, url: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        upload(place.root, url)


def test_a_store_whose_library_is_missing_names_it(place: Place) -> None:
    fsspec.register_implementation("shelf", "shelf.Shelf", errtxt="Install shelf", clobber=True)
    with pytest.raises(ConfigError, match="Install shelf"):
        upload(place.root, "shelf://bucket/repository")


def test_the_command_says_what_it_did(
    place: Place, tmp_path: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    done = weightpager("publish", "upload", place.root, store.as_uri(), "--delete")
    assert done.code == 0, done.err
    assert "files copied" in done.out
    assert "0 removed" in done.out
    assert (store / "targets" / NAME).exists()
    fails_after(0, monkeypatch)
    done = weightpager("publish", "upload", place.root, store.as_uri(), "--json")
    assert done.code == 1
    assert "the same command goes on from here" in done.err

"""What a pull plans, and what it does where a plan can't be carried out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3
from msgspec import structs

from damage import contents
from fleet import Device, Fleet, Place
from weightpager.bundle import Bundle
from weightpager.bundle.format import page_file
from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH
from weightpager.bundle.garbage import collect
from weightpager.delivery.pulling.assembly import Assembly
from weightpager.delivery.pulling.plan import PullPlan
from weightpager.delivery.version_file import Pack, PackRun, StoredFile, StoredPiece, VersionFile
from weightpager.errors import DeliveryError

_PAGE_BYTES = 4096


def piece(digit: str, size: int = 100) -> StoredPiece:
    return StoredPiece(blake3=digit * 64, bytes=size, stored=size // 2)


def version() -> VersionFile:
    """Five pages, of which the first and the last are the same."""
    ids = StoredPiece(blake3=None, bytes=5 * 32, stored=0)
    made_of = {MANIFEST: [piece("a")], MANIFEST_HASH: [piece("b")], page_file.FILE: [ids, piece("c")]}
    return VersionFile(
        format="weightpager-version-1",
        name="some",
        version="1",
        page_bytes=_PAGE_BYTES,
        page_files=[5],
        row_files=[],
        packs=[Pack(blake3="d" * 64, pages=4)],
        runs=[PackRun(pack=0, first=0, pages=4), PackRun(pack=0, first=0, pages=1)],
        files={
            name: StoredFile(bytes=sum(each.bytes for each in pieces), blake3="e" * 64, pieces=pieces)
            for name, pieces in made_of.items()
        },
    )


def plan() -> PullPlan:
    return PullPlan(version(), {}, {}, [1, 2], [3, 4], [piece("a")], [piece("b")])


def test_a_place_that_several_pages_have_is_fetched_once_for_those_that_lack_it() -> None:
    assert replace(plan(), copy_pages=[], fetch_pages=[0, 1, 4]).fetch_places() == {(0, 0): [0, 4], (0, 1): [1]}
    assert plan().fetch_places() == {(0, 3): [3], (0, 0): [4]}


@pytest.mark.parametrize("stored", [0, 4096])
def test_a_hole_is_no_piece_that_has_come(tmp_path: Path, stored: int) -> None:
    """A file that is mostly holes is refused in the end, at each pull."""
    content = (b"x" * stored).ljust(2 << 20, b"\0")
    digest = blake3(content).hexdigest()
    zeros = StoredPiece(blake3=digest, bytes=len(content), stored=100)
    file = StoredFile(bytes=len(content), blake3=digest, pieces=[zeros])
    mostly = structs.replace(version(), files=version().files | {"large": file})
    assembly = Assembly(tmp_path, mostly, [bytes([number]) * 32 for number in range(5)])
    assembly.begin()
    with (assembly.bundle / "large").open("r+b") as begun:
        begun.write(content[:stored])
    assert not assembly.is_whole("large")
    assert list(assembly.missing_pieces("large")) == [zeros]
    assembly.put_piece(zeros, content)
    assert assembly.is_whole("large")
    assert list(assembly.missing_pieces("large")) == []


def test_the_cost_is_of_what_is_fetched() -> None:
    cost = plan().cost()
    assert (cost.pages, cost.pages_in_all, cost.page_bytes) == (2, 5, 2 * _PAGE_BYTES)
    assert (cost.file_bytes, cost.bytes) == (50, 50 + 2 * _PAGE_BYTES)
    assert cost.bundle_bytes == 5 * _PAGE_BYTES + 300 + 160


def test_what_cant_be_copied_is_fetched_once() -> None:
    changed = plan().fetching([1], [piece("a"), piece("b")])
    assert (changed.fetch_pages, changed.fetch_pieces) == ([3, 4, 1], [piece("b"), piece("a")])


def test_pages_that_are_copied_need_room_too() -> None:
    assert plan().new_bytes == 4 * _PAGE_BYTES + 300 + 160


@pytest.fixture
def beside(fleet: Fleet, tmp_path: Path) -> Device:
    """A device whose only pages are those of a bundle that no pull has brought."""
    device = Device(tmp_path / "fresh", fleet.place.trust)
    shutil.copytree(fleet.new, device.into / "copied.bundle")
    return device


def test_a_bundle_that_goes_while_it_is_copied_is_fetched(fleet: Fleet, beside: Device) -> None:
    def goes(stage: str, done: int, total: int) -> None:
        if stage == "look for pages that are here" and done == total:
            shutil.rmtree(beside.into / "copied.bundle")

    told, done = beside.pull(fleet.place.root, dry_run=True), beside.pull(fleet.place.root, progress=goes)
    assert told.cost is not None
    assert done.cost is not None
    assert (told.cost.pages, done.cost.pages) == (0, len({row.tobytes() for row in Bundle.open(fleet.new).index.ids}))
    assert contents(beside.bundle) == contents(fleet.new)


def two_versions(bundle: Path, folder: Path) -> tuple[Device, Place]:
    """A device that has a bundle without its first task, of a repository that has all of it."""
    place, old = Place.make(folder), folder / "old.bundle"
    shutil.copytree(bundle, old)
    collect(old, drop=[next(iter(Bundle.open(old).tasks))])
    device = Device(folder / "device", place.trust)
    place.publish(old)
    device.pull(place.root)
    place.publish(bundle)
    return device, place


def damage(path: Path) -> None:
    """Change a bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_dry_run_sees_damage_as_the_pull_does(fleet: Fleet) -> None:
    device, whole = fleet.device, fleet.device.pull(fleet.place.root, dry_run=True)
    damage(next(device.bundle.glob("pages-*")))
    damage(device.bundle / "resident.safetensors")
    told, done = device.pull(fleet.place.root, dry_run=True), device.pull(fleet.place.root)
    assert whole.cost is not None
    assert told.cost == done.cost
    assert done.cost is not None
    assert done.cost.pages == whole.cost.pages + 1
    version = VersionFile.parse((device.bundle.resolve().parent / "version.json").read_bytes())
    assert done.cost.file_bytes == whole.cost.file_bytes + version.files["resident.safetensors"].pieces[-1].stored
    assert contents(device.bundle) == contents(fleet.new)


def test_copies_of_damaged_files_are_removed(fleet: Fleet) -> None:
    for path in fleet.device.bundle.rglob("*.*"):
        if path.is_file() and path.name not in (MANIFEST, MANIFEST_HASH, page_file.FILE):
            damage(path)
    fleet.device.pull(fleet.place.root)
    assert contents(fleet.device.bundle) == contents(fleet.new)
    assert {path.name for path in fleet.device.bundle.resolve().parent.iterdir()} == {"bundle", "version.json"}


def test_a_page_file_that_was_shared_and_is_damaged_isnt_shared_again(wordy_bundle: Path, tmp_path: Path) -> None:
    device, place = two_versions(wordy_bundle, tmp_path)
    damage(device.bundle / "rows-0000.safetensors")
    told, done = device.pull(place.root, dry_run=True), device.pull(place.root)
    assert told.cost == done.cost
    assert contents(device.bundle) == contents(wordy_bundle)
    assert (device.bundle / "rows-0000.safetensors").stat().st_nlink == 1


def test_a_page_file_that_cant_be_linked_is_copied(
    wordy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, place = two_versions(wordy_bundle, tmp_path)
    refused = []

    def refuses(original: Path, _: Path) -> None:
        refused.append(original.name)
        raise OSError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("os.link", refuses)
        told, done = device.pull(place.root, dry_run=True), device.pull(place.root)
    assert refused == ["rows-0000.safetensors"]
    assert told.cost == done.cost
    assert contents(device.bundle) == contents(wordy_bundle)
    assert (device.bundle / "rows-0000.safetensors").stat().st_nlink == 1


def test_a_disk_without_room_for_copies_is_refused(
    fleet: Fleet, beside: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sum(path.stat().st_size for path in fleet.new.rglob("*") if path.is_file() and "pages-" not in path.name)
    free = (16 << 20) + files
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, free))  # type: ignore[attr-defined]
        with pytest.raises(DeliveryError, match="make room"):
            beside.pull(fleet.place.root)

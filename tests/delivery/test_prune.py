"""Old versions leave a repository, and what others need stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from command import Command
from damage import contents
from fleet import NAME, Device, Fleet, Place
from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect
from weightpager.delivery.publishing.prune import prune
from weightpager.errors import ConfigError, DeliveryError


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fresh(fleet: Fleet, folder: Path, name: str = "fresh") -> Device:
    return Device(folder / name, fleet.place.trust)


def aged(place: Place, version: str, seconds: int) -> None:
    """As if a version had been published before the others."""
    (path,) = (place.root / "targets" / NAME / "versions").glob(f"*.{version}.json")
    os.utime(path, (seconds, seconds))


def test_what_no_channel_shows_goes_and_the_rest_is_whole(fleet: Fleet, tmp_path: Path) -> None:
    place = fleet.place
    before = files(place.root)
    told = prune(place.root, place.keys, 0, dry_run=True)
    assert files(place.root) == before
    done = prune(place.root, place.keys, 0)
    assert done.versions == told.versions == [f"{NAME} 1"]
    after = files(place.root)
    assert done.files == len(before.keys() - after.keys()) >= told.files > 0
    device = fresh(fleet, tmp_path)
    device.pull(place.root)
    assert contents(device.bundle) == contents(fleet.new)
    fleet.device.pull(place.root)
    assert contents(fleet.device.bundle) == contents(fleet.new)


def test_the_newest_ones_and_those_of_other_channels_stay(fleet: Fleet, tmp_path: Path) -> None:
    place, smaller = fleet.place, tmp_path / "smaller.bundle"
    place.publish(fleet.old, "beta", version="3")
    shutil.copytree(fleet.new, smaller)
    collect(smaller, drop=[sorted(Bundle.open(smaller).tasks)[0]])
    place.publish(smaller)
    for version, when in (("1", 100), ("2", 200), ("3", 50), ("4", 60)):
        aged(place, version, when)
    assert prune(place.root, place.keys, 2).versions == []
    assert prune(place.root, place.keys, 1).versions == [f"{NAME} 1"]
    assert prune(place.root, place.keys, 0).versions == [f"{NAME} 2"]
    for channel, bundle in (("beta", fleet.old), ("stable", smaller)):
        device = fresh(fleet, tmp_path, channel)
        device.pull(place.root, channel=channel)
        assert contents(device.bundle) == contents(bundle)


def test_what_was_published_and_pruned_can_be_published_again(fleet: Fleet, tmp_path: Path) -> None:
    place = fleet.place
    prune(place.root, place.keys, 0)
    assert place.publish(fleet.old).version == "3"
    device = fresh(fleet, tmp_path)
    device.pull(place.root)
    assert contents(device.bundle) == contents(fleet.old)


def test_what_a_killed_publisher_left_goes(fleet: Fleet) -> None:
    place = fleet.place
    for name in ("packs/" + "ab" * 32 + ".pack", "objects/" + "cd" * 32):
        (place.root / name).write_bytes(b"half")
    assert prune(place.root, place.keys, 5).bytes >= 8
    assert not (place.root / "objects" / ("cd" * 32)).exists()


def test_without_keys_nothing_goes(fleet: Fleet, tmp_path: Path) -> None:
    before = files(fleet.place.root)
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="expected 1 of the 1 keys of the role targets"):
        prune(fleet.place.root, tmp_path / "none", 0)
    assert files(fleet.place.root) == before
    with pytest.raises(DeliveryError, match="expected a repository"):
        prune(tmp_path / "none", tmp_path / "none", 0)


def test_the_command_says_what_goes(weightpager: Command, fleet: Fleet) -> None:
    for more, words in ((["--dry-run"], "would be removed"), ([], "were removed")):
        done = weightpager("publish", "prune", fleet.place.root, "--keep", 0, *more)
        assert done.code == 0
        assert f"{NAME} 1" in done.out
        assert words in done.out

"""Signatures, old metadata, clocks, and keys that are stolen or replaced."""

from __future__ import annotations

import datetime as time_of_day
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from damage import contents
from fleet import NAME, Device, Fleet, Place
from weightpager.bundle.files.new_file import beside
from weightpager.delivery.publishing import repository, roles
from weightpager.delivery.publishing.roles import ROLES, Roles
from weightpager.errors import ConfigError, DeliveryError, UntrustedError


def test_a_new_repository_has_private_keys_and_tells_what_to_trust(tmp_path: Path) -> None:
    place = Place.make(tmp_path)
    files = sorted(place.keys.iterdir())
    assert [path.name for path in files] == [
        "root-1.pem", "root-2.pem", "root-3.pem", "snapshot-1.pem", "targets-1.pem", "timestamp-1.pem",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert place.keys.stat().st_mode & 0o777 == 0o700
    assert json.loads(place.trust)["signed"]["roles"]["root"]["threshold"] == 2
    with pytest.raises(ConfigError, match="empty directory"):
        Place.make(tmp_path)
    with pytest.raises(ConfigError, match="outside"):
        repository.create(tmp_path / "other", tmp_path / "other" / "keys", 1, 1)
    with pytest.raises(ConfigError, match="threshold"):
        repository.create(tmp_path / "other", tmp_path / "keys", 1, 2)


def test_a_device_believes_no_other_root(fleet: Fleet, tmp_path: Path) -> None:
    other = Place.make(tmp_path / "other")
    device = Device(tmp_path / "fresh", other.trust)
    with pytest.raises(UntrustedError, match="signatures"):
        device.pull(fleet.place.root)
    assert not device.bundle.exists()


def test_whom_a_device_trusts_survives_a_kill(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    remove, metadata = os.remove, fleet.device.into / ".weightpager" / NAME / "metadata"

    def removes_and_dies(path: str) -> None:
        remove(path)
        raise KeyboardInterrupt

    repository.rotate(fleet.place.root, fleet.place.keys, "root")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.remove", removes_and_dies)
        fleet.device.pull(fleet.place.root)
    assert not (metadata / "root.json").exists()
    fleet.device.pull(fleet.place.root)
    for path in metadata.glob("root_history/*"):
        path.write_bytes(b"")  # as a power cut leaves what wasn't synced
    assert fleet.device.pull(fleet.place.root).outcome == "current"
    assert json.loads((metadata / "trusted.json").read_bytes())["signed"]["version"] == 2


def test_what_a_device_has_seen_survives_a_power_cut(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[Path] = set()
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.add(Path(f"/proc/self/fd/{descriptor}").readlink()))
    fleet.device.pull(fleet.place.root)
    metadata = fleet.device.into / ".weightpager" / NAME / "metadata"
    written = {beside(metadata / f"{role}.json") for role in ("timestamp", "snapshot", "targets")}
    assert written | {metadata} <= synced


@pytest.mark.parametrize("whose", ["typed", "kept"])
def test_root_metadata_that_is_none_is_asked_for_again(fleet: Fleet, tmp_path: Path, whose: str) -> None:
    device = Device(tmp_path / "fresh", b"{}") if whose == "typed" else fleet.device
    if whose == "kept":
        (device.into / ".weightpager" / NAME / "metadata" / "trusted.json").write_bytes(b"")
    with pytest.raises(ConfigError, match="trust: expected root metadata .* with --trust"):
        device.pull(fleet.place.root)


def test_old_metadata_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(fleet.place.root, old)
    repository.refresh(fleet.place.root, fleet.place.keys, [])
    fleet.device.pull(fleet.place.root)
    with pytest.raises(UntrustedError, match="no older than"):
        fleet.device.pull(old)
    assert contents(fleet.device.bundle) == contents(fleet.new)


class _Clock(time_of_day.datetime):
    years = 0

    @classmethod
    def now(cls, tz: time_of_day.tzinfo | None = None) -> time_of_day.datetime:
        real = time_of_day.datetime.now(tz)
        return real.replace(year=real.year + cls.years, day=1)


def _clock(monkeypatch: pytest.MonkeyPatch, years: int) -> None:
    clock = SimpleNamespace(datetime=type("Clock", (_Clock,), {"years": years}), timezone=time_of_day.timezone)
    monkeypatch.setattr("tuf.ngclient._internal.trusted_metadata_set.datetime", clock)


def test_metadata_that_nobody_renewed_is_refused_and_renewed_it_is_taken(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("weightpager.delivery.publishing.roles.DAYS", dict.fromkeys(ROLES, -1))
        repository.refresh(fleet.place.root, fleet.place.keys, [])
    with pytest.raises(UntrustedError, match="clock says .* publish refresh"):
        fleet.device.pull(fleet.place.root)
    assert contents(fleet.device.bundle) == contents(fleet.old)
    assert set(repository.refresh(fleet.place.root, fleet.place.keys, ["targets", "root"])) == set(ROLES)
    fleet.device.pull(fleet.place.root)
    assert contents(fleet.device.bundle) == contents(fleet.new)


def test_a_device_without_a_clock_pulls_and_still_takes_nothing_older(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    shutil.copytree(fleet.place.root, old)
    repository.refresh(fleet.place.root, fleet.place.keys, [])
    _clock(monkeypatch, -50)
    fleet.device.pull(fleet.place.root)
    assert contents(fleet.device.bundle) == contents(fleet.new)
    with pytest.raises(UntrustedError, match="no older than"):
        fleet.device.pull(old)


def test_a_device_whose_clock_is_ahead_says_so(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    _clock(monkeypatch, 40)
    with pytest.raises(UntrustedError, match="Set the clock"):
        fleet.device.pull(fleet.place.root)


@pytest.mark.parametrize("role", ROLES)
def test_keys_are_replaced_and_devices_follow(fleet: Fleet, role: str) -> None:
    made = repository.rotate(fleet.place.root, fleet.place.keys, role)
    assert len(made) == (3 if role == "root" else 1)
    assert len(list((fleet.place.keys / roles.RETIRED).iterdir())) == len(made)
    fleet.device.pull(fleet.place.root)
    fleet.place.publish(fleet.old, version="3")
    repository.rotate(fleet.place.root, fleet.place.keys, "root")
    assert fleet.device.pull(fleet.place.root).version == "3"
    assert contents(fleet.device.bundle) == contents(fleet.old)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_stolen_key_is_survived_by_a_rotation(fleet: Fleet, tmp_path: Path, role: str) -> None:
    """The thief signs what he can with it, far ahead of the owner's numbers, and devices take it, as they must."""
    thief = Place(tmp_path / "thief", tmp_path / "thief.keys")
    shutil.copytree(fleet.place.root, thief.root)
    thief.keys.mkdir()
    shutil.copy(fleet.place.keys / f"{role}-1.pem", thief.keys)
    state = Roles(thief.root, fleet.place.keys)  # the other keys sign for him only what they signed anyway
    getattr(state, role).version += 1000
    if role == "timestamp":
        content = state._signed("timestamp", state.timestamp, [])
        (thief.root / "metadata" / "timestamp.json").write_bytes(content)
    with pytest.raises(ConfigError, match="keys of the role"):
        Roles(thief.root, thief.keys).publish(targets=True)
    fleet.device.pull(thief.root)
    repository.rotate(fleet.place.root, fleet.place.keys, role)
    fleet.place.publish(fleet.old, version="3")
    assert fleet.device.pull(fleet.place.root).version == "3"
    assert contents(fleet.device.bundle) == contents(fleet.old)
    with pytest.raises(DeliveryError):
        fleet.device.pull(thief.root)


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_a_rotation_that_is_killed_anywhere_leaves_a_repository_that_devices_take(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    for moment in range(5):
        trial = fleet.copied(tmp_path / str(moment))
        left = iter(range(moment))
        real = roles.write_file

        def dies(path: Path, pieces: object, left: object = left, real: object = real) -> None:
            if next(left, None) is None:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            real(path, pieces)  # type: ignore[operator]

        with monkeypatch.context() as patch:
            patch.setattr("weightpager.delivery.publishing.roles.write_file", dies)
            try:
                repository.rotate(trial.place.root, trial.place.keys, role)
            except KeyboardInterrupt:
                assert moment < 4
        trial.device.pull(trial.place.root)
        assert contents(trial.device.bundle) == contents(trial.new)
        repository.rotate(trial.place.root, trial.place.keys, role)
        trial.place.publish(trial.old, version="3")
        assert trial.device.pull(trial.place.root).version == "3"


def test_a_missing_key_is_asked_for_before_anything_changes(fleet: Fleet) -> None:
    (fleet.place.keys / "timestamp-1.pem").rename(fleet.place.keys / "elsewhere")
    (fleet.place.root / "objects").rename(fleet.place.root / "gone")  # a publisher would write them again
    before = sorted(fleet.place.root.rglob("*"))
    with pytest.raises(ConfigError, match="keys of the role timestamp"):
        fleet.place.publish(fleet.old, version="3")
    assert sorted(fleet.place.root.rglob("*")) == before


def test_a_bundle_that_is_published_again_keeps_its_version(fleet: Fleet) -> None:
    fleet.device.pull(fleet.place.root)
    assert fleet.place.publish(fleet.new).version == "2"
    assert fleet.device.pull(fleet.place.root).outcome == "current"
    assert fleet.place.publish(fleet.new, channel="beta").version == "2"
    assert fleet.place.publish(fleet.old).version == "1"
    assert fleet.device.pull(fleet.place.root).in_use == "1"
    fleet.place.publish(fleet.new, version="4")
    assert fleet.place.publish(fleet.new).version == "4"


def test_the_channels_of_a_repository_have_versions_of_their_own(fleet: Fleet) -> None:
    done = fleet.place.publish(fleet.old, channel="beta", version="1")
    assert (done.version, done.pages) == ("1", 0)
    assert fleet.device.pull(fleet.place.root).version == "2"
    with pytest.raises(ConfigError, match="another bundle"):
        fleet.place.publish(fleet.new, version="1")
    with pytest.raises(DeliveryError, match=f"{NAME}/channels/none.json"):
        from weightpager.delivery.pulling.pull import Wish, pull
        from weightpager.delivery.sources import open_source

        pull(open_source(str(fleet.place.root)), fleet.device.into, Wish(NAME, channel="none"))

"""What a pull brings, keeps and leaves alone."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from urllib3 import ProxyManager

from damage import contents, damage
from fleet import NAME, Device, Fleet, Manners, Place, file_server
from weightpager.backends.verify import Verification, verify
from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect
from weightpager.delivery.pulling import fetch
from weightpager.delivery.pulling.installed import STATE, Installed
from weightpager.delivery.pulling.pull import roll_back
from weightpager.delivery.sources import HttpSource, open_source
from weightpager.errors import ConfigError, DeliveryError
from weightpager.progress import StepProgress


def lacking(fleet: Fleet) -> int:
    """Bytes of the pages that only the new version has."""
    old, new = ({row.tobytes() for row in Bundle.open(path).index.ids} for path in (fleet.old, fleet.new))
    return len(new - old) * Bundle.open(fleet.new).page_bytes


@pytest.mark.parametrize("way", ["directory", "server"])
def test_a_device_gets_the_bundle_byte_for_byte(fleet: Fleet, tmp_path: Path, way: str) -> None:
    device = Device(tmp_path / "fresh", fleet.place.trust)
    with file_server(fleet.place.root) as url:
        done = device.pull(fleet.place.root if way == "directory" else url)
    assert (done.outcome, done.version, done.in_use) == ("installed", "2", "2")
    assert contents(device.bundle) == contents(fleet.new)
    assert verify(device.bundle).problems == ()
    assert done.cost is not None
    assert done.cost.pages == done.cost.pages_in_all


def _refusing(name: str) -> Callable[..., None]:
    """`Path.mkdir` on a storage that takes no folder inside of one that has this name."""
    mkdir = Path.mkdir

    def refuse(path: Path, *arguments: Any, **settings: Any) -> None:
        if path.parent.name == name:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        mkdir(path, *arguments, **settings)

    return refuse


def test_a_first_pull_that_fails_leaves_nothing(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(tmp_path / "fresh", fleet.place.trust)
    for trust, channel in ((fleet.place.trust, "none"), (b"{}", "stable"), (None, "stable")):
        with pytest.raises((DeliveryError, ConfigError)):
            Device(device.into, trust).pull(fleet.place.root, channel=channel)
        assert not device.into.exists()
    device.into.mkdir()
    with pytest.raises(DeliveryError):
        device.pull(fleet.place.root, channel="none")
    assert list(device.into.iterdir()) == []
    device.bundle.mkdir()  # which no pull has made
    with pytest.raises(ConfigError, match="expected a link"):
        device.pull(fleet.place.root)
    assert list(device.into.iterdir()) == [device.bundle]
    device.bundle.rmdir()
    with monkeypatch.context() as patch, pytest.raises(DeliveryError, match="Read-only"):
        patch.setattr(Path, "mkdir", _refusing(STATE))
        device.pull(fleet.place.root)
    assert list(device.into.iterdir()) == []
    device.pull(fleet.place.root)
    with pytest.raises(DeliveryError):
        device.pull(fleet.place.root, channel="none")
    assert contents(device.bundle) == contents(fleet.new)


def test_what_a_first_pull_has_brought_stays_if_it_fails(fleet: Fleet, tmp_path: Path) -> None:
    device, manners = Device(tmp_path / "fresh", fleet.place.trust), Manners("flips", only=".pack")
    with file_server(fleet.place.root, manners) as url:
        with pytest.raises(DeliveryError):
            device.pull(url)
        assert any((device.into / STATE / NAME / "partial").iterdir())
        manners.way = "honest"
        device.pull(url)
    assert contents(device.bundle) == contents(fleet.new)


def test_what_storage_spoils_before_the_check_comes_again_alone(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(bundle: Path, progress: StepProgress) -> Verification:
        damage(bundle / "resident.safetensors", "flip", 0)
        return verify(bundle, progress)

    device = Device(tmp_path / "fresh", fleet.place.trust)
    with monkeypatch.context() as patch, pytest.raises(DeliveryError, match="found damage: resident.safetensors"):
        patch.setattr(fetch, "verify", spoiled)
        device.pull(fleet.place.root)
    done = device.pull(fleet.place.root)
    assert (done.outcome, done.cost and done.cost.pages) == ("installed", 0)
    assert contents(device.bundle) == contents(fleet.new)


def test_only_what_a_device_lacks_comes(fleet: Fleet) -> None:
    manners = Manners()
    with file_server(fleet.place.root, manners) as url:
        told = fleet.device.pull(url, dry_run=True)
        assert contents(fleet.device.bundle) == contents(fleet.old)
        asked = manners.asked.copy()
        assert not [path for path in asked if path.startswith("/packs/") and not path.endswith(".ids")]
        done = fleet.device.pull(url)
    assert contents(fleet.device.bundle) == contents(fleet.new)
    assert told.outcome == "would install"
    assert told.cost == done.cost
    assert done.cost is not None
    assert done.cost.page_bytes == lacking(fleet)
    assert manners.sent >= done.received >= done.cost.bytes


def test_a_page_that_is_damaged_here_comes_again(fleet: Fleet) -> None:
    file = next(fleet.device.bundle.glob("pages-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    fleet.device.pull(fleet.place.root)
    assert contents(fleet.device.bundle) == contents(fleet.new)


def test_pages_of_bundles_that_came_otherwise_are_used(fleet: Fleet, tmp_path: Path) -> None:
    device = Device(tmp_path / "fresh", fleet.place.trust)
    shutil.copytree(fleet.new, device.into / "copied.bundle")
    done = device.pull(fleet.place.root)
    assert done.cost is not None
    assert done.cost.pages == 0
    assert contents(device.bundle) == contents(fleet.new)
    assert next(device.bundle.glob("pages-*")).stat().st_nlink == 1


def test_other_commands_leave_installed_versions_alone(fleet: Fleet, tmp_path: Path) -> None:
    """`rollback` to a version would else lead to something else under its number."""
    device = Device(tmp_path / "fresh", fleet.place.trust)
    device.pull(fleet.place.root)
    for path in (device.bundle, device.bundle.resolve()):
        with pytest.raises(ConfigError, match="out: expected a bundle of your own, found .* that 'weightpager pull'"):
            collect(path, drop=[next(iter(Bundle.open(path).tasks))])
    assert contents(device.bundle) == contents(fleet.new)
    copied = Path(shutil.copytree(device.bundle, tmp_path / "copied.bundle"))
    collect(copied, drop=[next(iter(Bundle.open(copied).tasks))])


def test_page_files_that_stay_are_shared_between_versions(wordy_bundle: Path, tmp_path: Path) -> None:
    place, old = Place.make(tmp_path), tmp_path / "old.bundle"
    shutil.copytree(wordy_bundle, old)
    collect(old, drop=[next(iter(Bundle.open(old).tasks))])
    device = Device(tmp_path / "device", place.trust)
    for bundle in (old, wordy_bundle):
        place.publish(bundle)
        device.pull(place.root)
        assert contents(device.bundle) == contents(bundle)
    assert (device.bundle / "rows-0000.safetensors").stat().st_nlink == 2


def test_a_pull_that_was_cut_off_goes_on(fleet: Fleet, tmp_path: Path) -> None:
    device, manners = Device(tmp_path / "fresh", fleet.place.trust), Manners("short", only=".pack")
    with file_server(fleet.place.root, manners) as url:
        with pytest.raises(DeliveryError, match="expected"):
            device.pull(url)
        assert not device.bundle.exists()
        manners.way = "honest"
        done = device.pull(url)
    assert done.cost is not None
    assert done.cost.file_bytes == 0  # which had come
    assert contents(device.bundle) == contents(fleet.new)


def test_pages_that_had_come_dont_come_again(fleet: Fleet, tmp_path: Path) -> None:
    device, new = Device(tmp_path / "fresh", fleet.place.trust), Bundle.open(fleet.new)
    size, pages = new.page_bytes, len({row.tobytes() for row in new.index.ids})

    def stops(stage: str, done: int, total: int) -> None:
        if stage.startswith("fetch") and total - done <= (pages - 5) * size:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.pull(fleet.place.root, progress=stops)
    told, done = device.pull(fleet.place.root, dry_run=True), device.pull(fleet.place.root)
    assert told.cost == done.cost
    assert done.cost is not None
    assert done.cost.pages_in_all - 20 <= done.cost.pages <= done.cost.pages_in_all - 5
    assert contents(device.bundle) == contents(fleet.new)


def test_connections_that_break_now_and_then_end_no_pull(fleet: Fleet, tmp_path: Path) -> None:
    device = Device(tmp_path / "fresh", fleet.place.trust)
    with file_server(fleet.place.root, Manners(cuts=4)) as url:
        for _ in range(20):  # signed metadata isn't asked for twice in one pull
            try:
                device.pull(url)
                break
            except DeliveryError:
                assert not device.bundle.exists()
    assert contents(device.bundle) == contents(fleet.new)


def test_a_server_without_ranges_gives_whole_packs_and_that_is_said(fleet: Fleet) -> None:
    with file_server(fleet.place.root, Manners("whole", where="/")) as url:
        done = fleet.device.pull(url)
    assert done.whole_files
    assert contents(fleet.device.bundle) == contents(fleet.new)


@pytest.mark.parametrize("proxy", ["proxy:3128", "10.0.0.1:3128", "user:word@proxy:3128", "http://proxy:3128"])
def test_a_proxy_may_be_stated_as_curl_takes_it(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setattr("weightpager.delivery.sources.getproxies", lambda: {"http": proxy})
    monkeypatch.setattr("weightpager.delivery.sources.proxy_bypass", lambda _: False)
    source = open_source("http://example.org/repository")
    assert isinstance(source, HttpSource)
    assert isinstance(source._pool, ProxyManager)
    assert source._pool.proxy is not None
    assert (source._pool.proxy.scheme, source._pool.proxy.port) == ("http", 3128)


@pytest.mark.parametrize("proxy", ["socks5://proxy:1080", "http://[x", "http://proxy:port"])
def test_a_proxy_that_cant_be_used_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setattr("weightpager.delivery.sources.getproxies", lambda: {"http": proxy})
    monkeypatch.setattr("weightpager.delivery.sources.proxy_bypass", lambda _: False)
    with pytest.raises(ConfigError, match="http_proxy: expected"):
        open_source("http://example.org/repository")


def test_a_version_that_is_in_use_is_left_alone(fleet: Fleet) -> None:
    fleet.device.pull(fleet.place.root)
    before = fleet.device.bundle.resolve()
    assert fleet.device.pull(fleet.place.root).outcome == "current"
    assert fleet.device.bundle.resolve() == before


def test_a_rolled_back_version_comes_only_when_it_is_asked_for(fleet: Fleet) -> None:
    fleet.device.pull(fleet.place.root)
    done = roll_back(fleet.device.into, NAME)
    assert (done.before, done.now) == ("2", "1")
    assert contents(fleet.device.bundle) == contents(fleet.old)
    assert fleet.device.pull(fleet.place.root).outcome == "refused"
    assert fleet.device.pull(fleet.place.root, again=True).outcome == "installed"
    assert contents(fleet.device.bundle) == contents(fleet.new)
    assert roll_back(fleet.device.into, NAME, to="1").now == "1"
    with pytest.raises(DeliveryError, match="here are: 1, 2"):
        roll_back(fleet.device.into, NAME)
    with pytest.raises(DeliveryError, match="expected 7"):
        roll_back(fleet.device.into, NAME, to="7")


def test_a_rollback_goes_forth_and_back(fleet: Fleet) -> None:
    fleet.device.pull(fleet.place.root)
    for to, now in ((None, "1"), ("2", "2"), (None, "1"), ("2", "2")):
        assert roll_back(fleet.device.into, NAME, to).now == now
    with pytest.raises(DeliveryError, match="another version than 2, which is in use already"):
        roll_back(fleet.device.into, NAME, "2")
    assert fleet.device.pull(fleet.place.root).outcome == "current"


def test_a_rollback_of_a_bundle_that_is_not_here_says_which_are(fleet: Fleet) -> None:
    with pytest.raises(DeliveryError, match=f"found no 'other'; here are: {NAME}"):
        roll_back(fleet.device.into, "other")
    assert [path.name for path in (fleet.device.into / STATE).iterdir()] == [NAME]


def test_a_version_that_fails_its_check_goes_back_by_itself(fleet: Fleet) -> None:
    seen = []

    def check(path: Path) -> str:
        seen.append(contents(path) == contents(fleet.new))
        return "it is no good"

    done = fleet.device.pull(fleet.place.root, check=check)
    assert seen == [True]
    assert (done.outcome, done.problem, done.in_use) == ("rolled back", "it is no good", "1")
    assert contents(fleet.device.bundle) == contents(fleet.old)
    assert fleet.device.pull(fleet.place.root, check=check).outcome == "refused"


def test_a_first_version_that_fails_its_check_is_not_in_use(fleet: Fleet, tmp_path: Path) -> None:
    device = Device(tmp_path / "fresh", fleet.place.trust)
    assert device.pull(fleet.place.root, check=lambda _: "bad").in_use is None
    assert not device.bundle.is_symlink()


def test_a_check_that_was_interrupted_is_made_up_for(fleet: Fleet) -> None:
    def interrupted(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet.device.pull(fleet.place.root, check=interrupted)
    assert fleet.device.pull(fleet.place.root, check=lambda _: "bad").outcome == "rolled back"
    assert contents(fleet.device.bundle) == contents(fleet.old)


def test_versions_beyond_those_to_keep_go(fleet: Fleet) -> None:
    fleet.device.pull(fleet.place.root, keep=1)
    versions = fleet.device.into / ".weightpager" / NAME / "versions"
    assert len(list(versions.iterdir())) == 1
    assert contents(fleet.device.bundle) == contents(fleet.new)


def test_two_pulls_of_one_bundle_dont_mix(fleet: Fleet) -> None:
    with Installed.alone(fleet.device.into, NAME), pytest.raises(DeliveryError, match="another pull"):
        fleet.device.pull(fleet.place.root)


def test_a_bundle_that_no_pull_has_made_is_not_replaced(fleet: Fleet, tmp_path: Path) -> None:
    device = Device(tmp_path / "fresh", fleet.place.trust)
    shutil.copytree(fleet.old, device.bundle)
    with pytest.raises(ConfigError, match="rename it"):
        device.pull(fleet.place.root)
    assert contents(device.bundle) == contents(fleet.old)


def test_the_first_pull_wants_to_know_whom_to_trust(fleet: Fleet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="from which this bundle hasn't come yet.* with --trust"):
        Device(tmp_path / "fresh").pull(fleet.place.root)


def test_a_full_disk_leaves_what_is_in_use(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))  # type: ignore[attr-defined]
        with pytest.raises(DeliveryError, match="make room"):
            fleet.device.pull(fleet.place.root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for writes in ("bundle.format.page_file.write_at", "delivery.pulling.trust._Updater._persist_file"):
        with monkeypatch.context() as patch:
            patch.setattr(f"weightpager.{writes}", full)
            with pytest.raises(DeliveryError, match="No space left"):
                fleet.device.pull(fleet.place.root)
    assert contents(fleet.device.bundle) == contents(fleet.old)
    fleet.device.pull(fleet.place.root)
    assert contents(fleet.device.bundle) == contents(fleet.new)

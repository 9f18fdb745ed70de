"""Servers and repositories that lie, break and hang: a device keeps the old bundle or has the new one, whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from damage import KINDS, contents, damage
from fleet import WAYS, Fleet, Manners, file_server
from weightpager.delivery.sources import _same_host
from weightpager.delivery.version_file import VersionFile
from weightpager.errors import DeliveryError, UntrustedError


@pytest.mark.parametrize("way", WAYS)
def test_a_server_without_manners_changes_nothing(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setattr("weightpager.delivery.sources.SECONDS", 0.1)
    monkeypatch.setattr("weightpager.delivery.pulling.transfers.TRIES", 2)
    manners = Manners(way)
    with file_server(fleet.place.root, manners) as url:
        for manners.where in ("/metadata/", "/targets/", "/objects/", "/packs/"):
            if way == "lies" and manners.where != "/packs/":
                continue  # only parts are asked for by their places
            with pytest.raises(DeliveryError):
                fleet.device.pull(url)
            assert contents(fleet.device.bundle) == contents(fleet.old)
        manners.way = "honest"
        monkeypatch.undo()  # a busy machine may need more than the time that hanging servers are given
        fleet.device.pull(url)
    assert contents(fleet.device.bundle) == contents(fleet.new)


@pytest.mark.parametrize("where", ["/metadata/", "/objects/", "/packs/"])
def test_a_redirect_to_another_host_is_followed_only_if_that_is_asked_for(fleet: Fleet, where: str) -> None:
    here, there = Manners("moved", where), Manners()
    with file_server(fleet.place.root, there) as here.elsewhere, file_server(fleet.place.root, here) as url:
        with pytest.raises(DeliveryError, match=f"found a redirect to '{here.elsewhere}': .*--redirects"):
            fleet.device.pull(url)
        assert there.asked == []
        assert contents(fleet.device.bundle) == contents(fleet.old)
        fleet.device.pull(url, redirects=True)
    assert there.asked
    assert contents(fleet.device.bundle) == contents(fleet.new)


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("http://a.org/x", "http://a.org/y", True),
        ("http://a.org/x", "https://a.org/x", True),
        ("https://a.org/x", "http://a.org/x", False),
        ("http://a.org/x", "http://a.org:8000/x", False),
        ("http://a.org/x", "http://b.a.org/x", False),
        ("http://a.org/x", "file:///a.org/x", False),
    ],
)
def test_which_redirects_stay_with_a_server(before: str, after: str, same: bool) -> None:
    assert _same_host(before, after) is same


def test_a_redirect_to_another_path_is_followed(fleet: Fleet) -> None:
    shutil.copytree(fleet.place.root, fleet.place.root / "moved")
    with file_server(fleet.place.root, Manners("moved", "/packs/", elsewhere="/moved")) as url:
        fleet.device.pull(url)
    assert contents(fleet.device.bundle) == contents(fleet.new)


@pytest.mark.parametrize("location", ["http://[x/", "http://a:port/", "gopher://a/", "//"])
def test_a_redirect_to_nonsense_is_refused(fleet: Fleet, location: str) -> None:
    with file_server(fleet.place.root, Manners("moved", "/", elsewhere=location)) as url:
        for redirects in (False, True):
            with pytest.raises(DeliveryError):
                fleet.device.pull(url, redirects=redirects)


def test_a_repository_that_is_gone_is_named(fleet: Fleet) -> None:
    with file_server(fleet.place.root) as url:
        pass
    with pytest.raises(DeliveryError, match=url):
        fleet.device.pull(url)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
@pytest.mark.parametrize(
    "places", ["metadata/timestamp.json", "targets/*/channels/*", "packs/*.ids", "packs/*.pack", "objects/*"]
)
def test_what_is_no_ordinary_file_cannot_be_read(fleet: Fleet, places: str, make: Callable[[Path], None]) -> None:
    for path in fleet.place.root.glob(places):
        path.unlink()
        make(path)
    with pytest.raises(DeliveryError, match="cannot be read"):
        fleet.device.pull(fleet.place.root)
    assert contents(fleet.device.bundle) == contents(fleet.old)


@pytest.mark.slow
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_change_of_a_repository_is_refused_or_does_no_harm(
    made_fleet: Fleet, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "mutant"
    shutil.rmtree(folder, ignore_errors=True)
    fleet = made_fleet.copied(folder)
    files = sorted(path for path in fleet.place.root.rglob("*") if path.is_file() and path.stat().st_size)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(files))
        kind = data.draw(st.sampled_from([*KINDS, "swap"]))
        if not path.exists() or not path.stat().st_size:
            continue
        if kind == "swap":
            other = data.draw(st.sampled_from(files))
            if other.exists():
                path.write_bytes(other.read_bytes())
        else:
            damage(path, kind, data.draw(st.integers(0, 10**6)))
    try:
        outcome = fleet.device.pull(fleet.place.root).outcome
    except DeliveryError as error:
        outcome = str(error)
    # An old timestamp that is still in force is "current".
    expected = fleet.new if outcome == "installed" else fleet.old
    assert contents(fleet.device.bundle) == contents(expected)
    assert outcome in ("installed", "current") or "expected" in outcome


def changed(fleet: Fleet, changes: Callable[[dict[str, Any]], object]) -> bytes:
    """The second version's file with something else in it."""
    (path,) = (fleet.place.root / "targets" / "assistant" / "versions").glob("*.2.json")
    document = json.loads(path.read_bytes())
    changes(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../out", "a\\b", "a\0b", "", "pages-0000.safetensors"])
def test_a_version_file_names_only_files_inside_the_bundle(made_fleet: Fleet, name: str) -> None:
    text = changed(made_fleet, lambda document: document["files"].update({name: document["files"]["manifest.json"]}))
    with pytest.raises(UntrustedError, match="inside the bundle"):
        VersionFile.parse(text)


@pytest.mark.parametrize(
    "changes",
    [
        {"runs": []},
        {"packs": []},
        {"page_bytes": 4097},
        {"page_bytes": 2**40},
        {"page_files": [2**40]},
        {"name": "../x"},
        {"name": "x\n"},
        {"version": "1/2"},
        {"format": "weightpager-version-9"},
        {"files": {}},
        {"files": {"a": {"bytes": 5, "blake3": "0" * 64, "pieces": []}}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_version_file_that_doesnt_add_up_is_refused(made_fleet: Fleet, changes: dict[str, object]) -> None:
    with pytest.raises(UntrustedError, match="version file"):
        VersionFile.parse(changed(made_fleet, lambda document: document.update(changes)))
    version = VersionFile.parse(changed(made_fleet, lambda document: None))
    assert VersionFile.parse(version.dump()) == version


def test_bytes_that_are_no_version_file_are_refused() -> None:
    for text in (b"", b"[]", b"{}", b"\xff", b"[" * 100_000):
        with pytest.raises(UntrustedError, match="version file"):
            VersionFile.parse(text)

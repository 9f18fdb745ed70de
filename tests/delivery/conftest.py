"""A repository with two versions of a bundle, made once; tests that change it copy it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fleet import Device, Fleet, Place
from weightpager.bundle.garbage import collect


@pytest.fixture(scope="session")
def made_fleet(assistant_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder, bundles = tmp_path_factory.mktemp("fleet"), tmp_path_factory.mktemp("bundles")
    old = bundles / "old.bundle"
    shutil.copytree(assistant_bundle, old)
    collect(old, drop=["weather"])
    place = Place.make(folder)
    place.publish(old)
    device = Device(folder / "device", place.trust)
    device.pull(place.root)
    place.publish(assistant_bundle)
    return Fleet(place, old, assistant_bundle, device)


@pytest.fixture
def fleet(made_fleet: Fleet, tmp_path: Path) -> Fleet:
    return made_fleet.copied(tmp_path)


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.delivery.pulling.transfers.FIRST_WAIT", 0.001)
    monkeypatch.setattr("os.fsync", lambda _: None)  # no test cuts the power

"""Bundles for the device's tests: compiled by the session, or made beforehand where nothing can be compiled."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Bundles = Callable[[str], Path]

MADE = os.environ.get("DEVICE_BUNDLES")
"""The folder that ``run.sh`` has filled; None where tests make what they need."""


@pytest.fixture(scope="session")
def bundles(request: pytest.FixtureRequest) -> Bundles:
    """A bundle by name."""
    if MADE is None:
        return lambda name: Path(request.getfixturevalue(f"{name}_bundle"))
    return lambda name: Path(MADE) / name / f"{name}.bundle"


@pytest.fixture(scope="session")
def repository(bundles: Bundles, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two versions of the assistant's bundle, the first without the task ``weather``."""
    if MADE is None:
        from fleet import Place  # needs what signs, which no device has

        place = Place.make(tmp_path_factory.mktemp("fleet"))
        place.publish_in_two_versions(bundles("assistant"), "weather")
        return place.root
    return Path(MADE) / "fleet" / "repository"

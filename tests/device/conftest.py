"""Bundles for the device's tests: compiled by the session, or made beforehand where nothing can be compiled."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Bundles = Callable[[str], Path]


@pytest.fixture(scope="session")
def bundles(request: pytest.FixtureRequest) -> Bundles:
    """A bundle by name; from the folder that ``DEVICE_BUNDLES`` names, if it is set (see ``run.sh``)."""
    made = os.environ.get("DEVICE_BUNDLES")
    if made is None:
        return lambda name: Path(request.getfixturevalue(f"{name}_bundle"))
    return lambda name: Path(made) / name / f"{name}.bundle"

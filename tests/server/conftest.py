from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from running import ADMIN, Running, serving
from weightpager.server.scheduling.settings import Settings


@pytest.fixture(scope="session")
def assistant(assistant_bundle: Path) -> Iterator[Running]:
    """Four encoder tasks; the admin may ask."""
    with serving(assistant_bundle, Settings(admin_token=ADMIN)) as running:
        yield running


@pytest.fixture(scope="session")
def camera(camera_bundle: Path) -> Iterator[Running]:
    """Three tasks on images."""
    with serving(camera_bundle) as running:
        yield running


@pytest.fixture(scope="session")
def writer(writer_bundle: Path) -> Iterator[Running]:
    """Two decoder tasks."""
    with serving(writer_bundle) as running:
        yield running

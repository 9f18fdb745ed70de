"""A directory on a local disk, which the tests of cold reads need."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightpager.machine.mounts import mount_of


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on a file system that can drop what it has cached."""
    directory = tmp_path_factory.mktemp("disk")
    mount = mount_of(directory)
    if mount.kind not in {"btrfs", "ext4", "xfs"} or mount.source.startswith("/dev/loop"):
        pytest.skip(f"temporary files lie on {mount.kind}, which can't drop what it has cached")
    return directory


@pytest.fixture(scope="session")
def memory_file_system() -> Path:
    """A directory whose files live in memory."""
    directory = Path("/dev/shm")
    if not directory.is_dir() or mount_of(directory).kind != "tmpfs":
        pytest.skip("no tmpfs at /dev/shm")
    return directory

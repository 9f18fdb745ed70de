"""The disk behind a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightpager.errors import ConfigError
from weightpager.machine.storage import Mount
from weightpager_lab.limits.cgroup import disk_of, whole_disk


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A disk 259:0 with a partition 259:1, and a disk 253:0 without one, as sysfs shows them."""
    disk, mapped = tmp_path / "devices/pci/nvme0n1", tmp_path / "devices/virtual/dm-0"
    partition = disk / "nvme0n1p1"
    for node, number in ((disk, "259:0"), (partition, "259:1"), (mapped, "253:0")):
        node.mkdir(parents=True)
        (node / "dev").write_text(number + "\n")
    (partition / "partition").write_text("1\n")
    links = tmp_path / "dev/block"
    links.mkdir(parents=True)
    for node in (disk, partition, mapped):
        (links / (node / "dev").read_text().strip()).symlink_to(node)
    return tmp_path


@pytest.mark.parametrize(("major", "minor", "disk"), [(259, 1, "259:0"), (259, 0, "259:0"), (253, 0, "253:0")])
def test_a_partition_belongs_to_its_disk(sysfs: Path, major: int, minor: int, disk: str) -> None:
    assert whole_disk(major, minor, sysfs) == disk


def test_an_unknown_disk_is_refused(sysfs: Path) -> None:
    with pytest.raises(ConfigError, match="expected a block device, got 8:1"):
        whole_disk(8, 1, sysfs)


def test_a_local_file_has_a_disk(disk: Path) -> None:
    major, minor = map(int, disk_of(disk).split(":"))
    assert whole_disk(major, minor) == f"{major}:{minor}"


def test_a_file_in_memory_has_no_disk(memory_file_system: Path) -> None:
    with pytest.raises(ConfigError, match="expected a file system on a disk, got tmpfs"):
        disk_of(memory_file_system)


def test_a_mount_out_of_sight_has_no_disk(memory_file_system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_sight(path: Path) -> Mount:
        raise LookupError(f"{path}: no mount has the number 7")

    monkeypatch.setattr("weightpager_lab.limits.cgroup.mount_of", out_of_sight)
    with pytest.raises(ConfigError, match="expected a file system on a disk, got one whose mount is out of sight"):
        disk_of(memory_file_system)

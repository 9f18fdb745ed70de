"""A device needs nothing that signs."""

from __future__ import annotations

from pathlib import Path

from bare import python
from damage import contents
from fleet import Fleet


def test_a_device_verifies_and_pulls_where_only_tuf_is_installed(fleet: Fleet) -> None:
    words = ["weightpager", "pull", str(fleet.place.root), "assistant", "--into", str(fleet.device.into)]
    ran = python(f"sys.modules['cryptography'] = None\nsys.argv = {words!r}\nfrom weightpager.cli import main; main()")
    assert ran.returncode == 0, ran.stderr
    assert "installed" in ran.stdout
    assert contents(fleet.device.bundle) == contents(fleet.new)
    assert Path(fleet.device.bundle).is_symlink()

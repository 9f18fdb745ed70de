"""Where ``/proc`` isn't mounted, as in some sandboxes: bundles open, and what needs it says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HIDDEN = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"]


def can_hide_proc() -> bool:
    try:
        return os.geteuid() == 0 and subprocess.run([*HIDDEN, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not can_hide_proc(), reason="only root may hide /proc from a process")


def printed(code: str, *arguments: object) -> str:
    """What a program prints."""
    python = [*HIDDEN, sys.executable, "-c", f"import sys\n{code}"]
    done = subprocess.run([*python, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def test_a_bundle_opens_and_is_verified(assistant_bundle: Path) -> None:
    code = "from weightpager.backends.verify import verify; print(verify(sys.argv[1]).problems)"
    assert printed(code, assistant_bundle) == "()\n"


def test_mending_says_that_it_needs_proc(assistant_bundle: Path, tmp_path: Path) -> None:
    code = "from weightpager.bundle.repair import repair; repair(*sys.argv[1:])"
    assert "expected /proc, through which a bundle is held" in printed(code, assistant_bundle, tmp_path)

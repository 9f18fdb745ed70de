"""Kill -9 at any moment, a few times; ``python -m benchmarks.kills`` does it for long."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_a_killed_command_leaves_the_old_bundle_or_the_new_one_and_spoils_no_page() -> None:
    command = [sys.executable, "-m", "benchmarks.kills", "--moments", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stderr
    for name in ("compile --force", "compile --base", "repack", "repair"):
        assert re.search(rf"^{name}: 2 of 2 moments passed", done.stdout, re.MULTILINE), done.stdout

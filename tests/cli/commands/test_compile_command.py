"""``weightpager compile`` before it compiles; what it makes is tested with the compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from weightpager.cli import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""


def test_what_is_wrong_in_a_task_file_is_told_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text("model: nowhere\ntasks: []\n", encoding="utf-8")
    command = [sys.executable, "-c", CODE, "compile", "tasks.yaml", "--out", "a.bundle"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode != 0, done.stdout) == (True, "False\n")
    assert "tasks" in done.stderr
    assert "Traceback" not in done.stderr

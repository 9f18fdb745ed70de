"""What is said of the machine that a measurement ran on."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from weightpager_lab import machine_facts

X86 = """processor\t: 0
model name\t: Some CPU @ 2.00GHz
flags\t\t: fpu sse2 avx2 avx512f amx_tile

processor\t: 1
model name\t: Another
"""
ARM = """processor\t: 0
Features\t: fp asimd bf16
CPU implementer\t: 0x41
CPU part\t: 0xd0c
"""


def test_a_description_is_json_and_names_what_a_row_needs() -> None:
    described = json.loads(json.dumps(machine_facts.describe()))
    assert described["usable_cores"] <= described["cores"]
    assert described["memory_bytes"] > 0
    assert described["versions"]["numpy"]
    assert described["commit"] is None or re.fullmatch("[0-9a-f]{40}(-dirty)?", described["commit"])


def test_a_processor_that_is_unknown_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def without(path: Path, *arguments: Any, **options: Any) -> str:
        if path == Path("/proc/cpuinfo"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", without)
    described = machine_facts.describe()
    assert (described["cpu"], described["isa"]) == (None, [])


def test_measuring_needs_no_torch() -> None:
    code = (
        "import sys, weightpager.doctor.cold, weightpager_lab.limits.__main__, weightpager_lab.machine_facts as m; "
        "print(m.describe()['torch_threads'], 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["None", "False"]


@pytest.mark.parametrize(
    ("text", "model", "isa"),
    [
        (X86, "Some CPU @ 2.00GHz", ["amx_tile", "avx2", "avx512f"]),
        (ARM, "0x41 0xd0c", ["asimd", "bf16"]),
        ("", None, []),
    ],
)
def test_cpus_are_named(text: str, model: str | None, isa: list[str]) -> None:
    assert machine_facts.parse_cpuinfo(text) == {"model": model, "isa": isa}

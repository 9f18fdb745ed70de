"""What a measurement ran on: the facts of a machine that results are published with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from weightpager import __version__
from weightpager.doctor.machine import cpu_flags, cpu_model, read_cpuinfo
from weightpager.machine.processor import usable_cores

_PACKAGES = ("torch", "transformers", "numpy", "safetensors")
_ISA = frozenset({
    "amx_bf16", "amx_int8", "amx_tile", "asimd", "avx2", "avx512_bf16", "avx512_vnni", "avx512f", "bf16", "i8mm", "sve",
})  # fmt: skip


def describe() -> dict[str, object]:
    """Facts of this machine that a result is published with: JSON values, sizes in bytes, None where unknown.

    It never imports torch; its number of threads is given if it is loaded already.
    """
    cpu = parse_cpuinfo(read_cpuinfo())
    torch = sys.modules.get("torch")
    return {
        "cpu": cpu["model"],
        "isa": cpu["isa"],
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {"weightpager": __version__} | {name: _version(name) for name in _PACKAGES},
        "torch_threads": None if torch is None else torch.get_num_threads(),
        "commit": _commit(),
    }


def parse_cpuinfo(text: str) -> dict[str, object]:
    """Model and instruction sets of the first CPU that ``/proc/cpuinfo`` lists."""
    return {"model": cpu_model(text), "isa": sorted(_ISA & cpu_flags(text))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def commit_of(directory: Path, *options: str) -> str | None:
    """The commit of a checkout, with ``-dirty`` after it if files differ, rows in docs aside, which benchmarks write.

    ``options`` are those of ``git describe``.
    """
    found = _git(directory, "describe", "--always", "--exclude=*", *options)
    changed = _git(directory, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)docs/*.json")
    return f"{found}-dirty" if found and changed else found


def _commit() -> str | None:
    """The commit of the checkout that this package runs from."""
    package = Path(__file__).resolve().parent
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != package.parents[1]:  # installed inside somebody else's checkout
        return None
    return commit_of(package, "--abbrev=40")


def _git(directory: Path, *arguments: str) -> str | None:
    command = ["git", "-C", os.fspath(directory), *arguments]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - no user input in it
    except (OSError, subprocess.CalledProcessError):
        return None
    return run.stdout.strip()

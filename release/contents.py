"""What a wheel has in it, and what it asks of the machine that it is installed on."""

from __future__ import annotations

import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ALLOWED = re.compile(r"(ld-linux-(x86-64|aarch64)|lib(c|m|dl|rt|pthread))\.so\.\d+")
"""Libraries that a module may ask for: those of the C library itself."""

WANTED = re.compile(r"\.(py|pyi|so|html|html\.j2|json|jsonl|yaml)$|/py\.typed$")
"""Files that the package may hold; anything else is questioned."""

MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}


def problems(wheel: Path) -> list[str]:
    """Everything in a wheel that isn't as it is claimed; empty if all is well."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        found = list(misplaced(names))
        modules = [name for name in names if ".so" in PurePosixPath(name).suffixes]
        if len(modules) != 1:
            found.append(f"expected one native module, found {modules}")
        for name in modules:
            found += module_problems(Path(archive.extract(name, folder)), wheel.stem.rpartition("-")[2])
    return found


def misplaced(names: list[str]) -> Iterator[str]:
    """What isn't of the package, or no kind of file that it has."""
    for name in names:
        first = PurePosixPath(name).parts[0]
        if first == "weightpager":
            if not WANTED.search(name):
                yield f"{name}: nobody on a device reads such a file"
        elif not re.fullmatch(r"weightpager-[^/]+\.dist-info", first):
            yield f"{name}: expected weightpager/ and its metadata, nothing beside it"
    if not any(name.endswith("/LICENSE") for name in names):
        yield "expected the license"


def module_problems(module: Path, platform: str) -> list[str]:
    """What keeps a native module from being loaded where its platform's tag says that it runs."""
    found = []
    header, dynamic, versions = (readelf(module, option) for option in ("--file-header", "--dynamic", "--version-info"))
    machine = next((name for name in MACHINES if platform.endswith(name)), "")
    if not machine or MACHINES[machine] not in header:
        found.append(f"{module.name}: expected a module for what {platform} names, found another")
    found += [f"{module.name}: asks for {library}" for library in needed(dynamic) if not ALLOWED.fullmatch(library)]
    claimed = glibc_of(platform)
    return found + [
        f"{module.name}: asks for GLIBC_{'.'.join(map(str, version))}, {platform} claims less"
        for version in glibc_versions(versions)
        if claimed is None or version > claimed
    ]


def needed(dynamic: str) -> list[str]:
    """The libraries that a module asks for, of what ``readelf --dynamic`` says."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)


def glibc_versions(versions: str) -> list[tuple[int, ...]]:
    """The versions of the C library whose symbols a module asks for, of what ``readelf --version-info`` says."""
    return sorted({tuple(map(int, text.split("."))) for text in re.findall(r"\bGLIBC_([\d.]+)", versions)})


def glibc_of(platform: str) -> tuple[int, int] | None:
    """The newest C library that a platform's tag lets a module ask for; None if it says nothing about it."""
    tags = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)", platform)]
    return min(tags, default=None)


def readelf(module: Path, option: str) -> str:
    """What binutils say of a module."""
    command = ["readelf", "--wide", option, str(module)]
    return subprocess.run(
        command, text=True, capture_output=True, check=True, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    ).stdout

from __future__ import annotations

import platform
import shutil
import zipfile
from pathlib import Path

import pytest

from release import contents

MACHINE = platform.machine()
FILES = (
    "weightpager/",
    "weightpager/__init__.py",
    "weightpager/py.typed",
    "weightpager-0.1.0.dist-info/licenses/LICENSE",
)


def wheel(folder: Path, *names: str, platform: str = f"manylinux_2_28_{MACHINE}", module: Path | None = None) -> Path:
    made = folder / f"weightpager-0.1.0-cp312-abi3-{platform}.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, "")
        if module:
            archive.writestr("weightpager/kernels/_native.abi3.so", module.read_bytes())
    return made


@pytest.fixture
def module() -> Path:
    """A native module that asks for no library but those of the C library: Python's own of no dependencies."""
    import math

    if not getattr(math, "__file__", None) or not shutil.which("readelf"):
        pytest.skip("no module to look at, or no readelf")
    return Path(math.__file__)


def test_a_wheel_as_it_should_be_has_no_problems(tmp_path: Path, module: Path) -> None:
    assert contents.problems(wheel(tmp_path, *FILES, platform=f"manylinux_2_99_{MACHINE}", module=module)) == []


def test_symbols_newer_than_what_is_claimed_are_found(tmp_path: Path, module: Path) -> None:
    found = contents.problems(wheel(tmp_path, *FILES, platform=f"manylinux_2_1_{MACHINE}", module=module))
    assert found != []
    assert all(f"manylinux_2_1_{MACHINE} claims less" in problem for problem in found)


def test_the_oldest_claim_of_several_counts() -> None:
    assert contents.glibc_of("manylinux_2_28_x86_64.manylinux_2_34_x86_64") == (2, 28)
    assert contents.glibc_of("linux_x86_64") is None


def test_versions_are_compared_as_numbers() -> None:
    said = "0x0010: Name: GLIBC_2.9  Flags: none\n 0x0020: Name: GLIBC_2.28 Flags: none\n Name: GLIBCXX_3.4.9"
    assert contents.glibc_versions(said) == [(2, 9), (2, 28)]


def test_another_machines_module_is_found(tmp_path: Path, module: Path) -> None:
    other = next(name for name in contents.MACHINES if name != MACHINE)
    found = contents.problems(wheel(tmp_path, *FILES, platform=f"manylinux_2_99_{other}", module=module))
    assert len(found) == 1
    assert f"expected a module for what manylinux_2_99_{other} names" in found[0]


@pytest.mark.parametrize("name", ["tests/test_a.py", "benchmarks/a.py", "weightpager/kernels/kernel.cpp", "csrc/a.hpp"])
def test_what_a_device_does_not_need_is_found(tmp_path: Path, module: Path, name: str) -> None:
    found = contents.problems(wheel(tmp_path, *FILES, name, platform=f"manylinux_2_99_{MACHINE}", module=module))
    assert [problem for problem in found if problem.startswith(name)] == found != []


def test_a_wheel_without_the_module_or_the_license_is_refused(tmp_path: Path) -> None:
    assert contents.problems(wheel(tmp_path, *FILES[:2])) == [
        "expected the license",
        "expected one native module, found []",
    ]


def test_a_library_that_a_machine_may_lack_is_found() -> None:
    said = " 0x1 (NEEDED)  Shared library: [libstdc++.so.6]\n 0x1 (NEEDED)  Shared library: [libc.so.6]"
    assert [name for name in contents.needed(said) if not contents.ALLOWED.fullmatch(name)] == ["libstdc++.so.6"]


def test_every_file_of_the_package_may_be_in_a_wheel() -> None:
    root = Path(contents.__file__).parents[1] / "src"
    files = [path for path in (root / "weightpager").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert list(contents.misplaced([*(str(path.relative_to(root)) for path in files), FILES[-1]])) == []

"""The tutorial as a new user types it: a wheel, environments of two machines, a server, and no other step."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import tiny
from tutorial import TUTORIAL, fill
from weightpager.kernels import isa

ROOT = Path(__file__).parent.parent
NOT_HERE = re.compile(r"^(pip install torch|hf download) .*\n", re.MULTILINE)
"""What isn't typed: torch is there, and a tiny model takes the place of the one that is fetched."""


@dataclass(frozen=True)
class Block:
    """What is typed at once, in a section of this number, and on which machine."""

    section: int
    script: str
    where: Literal["machine", "box"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("curl") is None or isa() == "reference", reason="needs curl and the native module")
def test_the_first_hour(tmp_path: Path) -> None:
    machine, box = _machines(tmp_path)
    assistant = machine / "assistant"
    blocks = list(_blocks())
    assert [block.section for block in blocks if block.where == "box"] == [7, 7, 7, 8, 8]
    with ExitStack() as servers:
        for block in blocks:
            if block.where == "box":
                _carry(assistant / "repository", box)
            if block.section == 9:
                tiny.llama(_empty(assistant / "model"))  # one's own model is another one
            folder = box if block.where == "box" else assistant if assistant.exists() else machine
            if block.script.startswith("weightpager serve"):
                servers.enter_context(_serving(block.script, folder))
                continue
            said = _type(block.script, folder)
            servers.close()
            assert "curl" not in block.script or '"label"' in said
            if block.script.startswith("weightpager init"):
                fill(assistant)


def _blocks() -> Iterator[Block]:
    for number, section in enumerate(TUTORIAL.split("\n## ")[1:], 1):
        for place, script in enumerate(re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)):
            if script := NOT_HERE.sub("", script):
                yield Block(number, script, "box" if number == 7 or (number == 8 and place >= 1) else "machine")


def _machines(folder: Path) -> tuple[Path, Path]:
    """Two directories with a wheel; one has the libraries of this environment, which take minutes to install."""
    wheel, machine, box = _wheel(folder / "made"), folder / "machine", folder / "box"
    for place in (machine, box):
        place.mkdir()
        shutil.copy(wheel, place)
    python = folder / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    _type("python3 -m venv .venv", machine)
    libraries = folder / "libraries"
    libraries.mkdir()
    for found in Path(sysconfig.get_path("purelib")).iterdir():
        if "weightpager" not in found.name and found.suffix != ".pth":
            (libraries / found.name).symlink_to(found)
    (site,) = (machine / ".venv" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(f"{libraries}\n")
    return machine, box


def _wheel(folder: Path) -> Path:
    """Of this tree, with the native module that this environment has: building that again takes minutes."""
    settings = ["--config-settings", "wheel.cmake=false", "--config-settings", "wheel.py-api=py3"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *settings, "--wheel-dir", folder, ROOT]
    subprocess.run(command, check=True)
    from weightpager.kernels import _native

    (wheel,) = folder.glob("weightpager-*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.write(_native.__file__, f"weightpager/kernels/{Path(_native.__file__).name}")
    return wheel


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder)
    return folder


def _carry(repository: Path, box: Path) -> None:
    """As the page says: the repository, and whose signatures count."""
    shutil.copytree(repository, box / "repository", dirs_exist_ok=True)
    shutil.copy(repository / "metadata" / "1.root.json", box / "root.json")


def _environment(folder: Path) -> dict[str, str]:
    """A user's, who has activated what the folder or the one above it has."""
    place = folder if (folder / ".venv").exists() else folder.parent
    path = [place / ".venv" / "bin", place.parent / "bin", folder.parent / "bin"]
    more = {"HF_HUB_OFFLINE": "1", "WEIGHTPAGER_CACHE_LIMIT": "0", "WEIGHTPAGER_TOP_ONCE": "1"}
    kept = {name: os.environ[name] for name in ("HOME", "OMP_NUM_THREADS") if name in os.environ}
    return {"PATH": ":".join([*map(str, path), os.environ["PATH"]]), **kept, **more}


def _type(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@contextmanager
def _serving(script: str, folder: Path) -> Iterator[None]:
    command = ["bash", "-euc", f"exec {script}"]
    with subprocess.Popen(command, cwd=folder, env=_environment(folder), stdout=subprocess.DEVNULL) as process:
        try:
            _await("http://127.0.0.1:8000/ready", process)
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=100) == 0
        finally:
            process.kill()


def _await(url: str, process: subprocess.Popen[bytes], seconds: float = 100) -> None:
    end = time.monotonic() + seconds
    while True:
        assert process.poll() is None, "the server has ended"
        assert time.monotonic() < end, "the server isn't ready"
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)

"""The real pip on local files, and an npm made of a few lines of Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from handmade import pin, tarball, wheel
from weightpager_lab.samples import SampleUnavailable, download, inert_backend
from weightpager_lab.samples.download import fetch

SETUP = (
    "from pathlib import Path\nPath({!r}).touch()\nfrom setuptools import setup\nsetup(name='thing', version='1.0')\n"
)
PKG_INFO = b"Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that pip takes packages from, and nowhere else."""
    directory = tmp_path / "index"
    directory.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return directory


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose Python text runs as npm."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory / "npm"


def write_npm(npm: Path, text: str) -> None:
    npm.write_text(f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n{text}\n")
    npm.chmod(0o755)


@pytest.mark.slow
def test_pip_downloads_a_wheel(index: Path, tmp_path: Path) -> None:
    meta = {"thing-1.0.dist-info/METADATA": PKG_INFO, "thing-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\n"}
    content = wheel(meta)
    archive = pin(content, "pip")
    (index / archive.file).write_bytes(content)
    assert fetch(archive, tmp_path).read_bytes() == content


@pytest.mark.slow
def test_pip_downloads_a_source_distribution_without_running_it(index: Path, tmp_path: Path) -> None:
    traces = tmp_path / "executed"
    content = tarball({"thing-1.0/setup.py": SETUP.format(str(traces)).encode(), "thing-1.0/PKG-INFO": PKG_INFO})
    archive = pin(content, "pip-sdist")
    (index / archive.file).write_bytes(content)
    assert fetch(archive, tmp_path).read_bytes() == content
    assert not traces.exists()


def test_pip_refuses_other_bytes_before_it_opens_them(index: Path, tmp_path: Path) -> None:
    archive = pin(b"what was pinned", "pip-sdist")
    (index / archive.file).write_bytes(b"what is there: not even an archive")
    with pytest.raises(SampleUnavailable, match=r"'pip download thing==1\.0' ended with status 1(.|\n)*[Gg]ot"):
        fetch(archive, tmp_path)


def test_a_package_that_pip_cannot_find(index: Path, tmp_path: Path) -> None:
    with pytest.raises(SampleUnavailable, match=r"needed by chess, poetry: .*No matching distribution"):
        fetch(pin(b"", "pip"), tmp_path)


def test_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "find_spec", lambda name: None)
    with pytest.raises(SampleUnavailable, match="has no pip"):
        fetch(pin(b"", "pip"), tmp_path)


def test_npm_packs_the_pinned_version(npm: Path, tmp_path: Path) -> None:
    write_npm(npm, "assert sys.argv[1] == 'pack'; Path('thing-1.0.tgz').write_text(sys.argv[-1])")
    assert fetch(pin(b"thing@1.0"), tmp_path).read_text() == "thing@1.0"


def test_npm_is_missing(npm: Path, tmp_path: Path) -> None:
    with pytest.raises(SampleUnavailable, match=r"thing 1\.0 \(npm\), needed by chess, poetry: npm is not installed"):
        fetch(pin(b""), tmp_path)


def test_npm_fails(npm: Path, tmp_path: Path) -> None:
    write_npm(npm, "sys.exit('no such package')")
    with pytest.raises(SampleUnavailable, match=r"'npm pack thing@1\.0' ended with status 1: no such package"):
        fetch(pin(b""), tmp_path)


def test_npm_cannot_be_started(npm: Path, tmp_path: Path) -> None:
    npm.write_text("#!/nonexistent/interpreter\n")
    npm.chmod(0o755)
    with pytest.raises(SampleUnavailable, match="could not be started"):
        fetch(pin(b""), tmp_path)


def test_npm_hangs(npm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", 0.2)
    write_npm(npm, "import time; time.sleep(20)")
    with pytest.raises(SampleUnavailable, match="took longer"):
        fetch(pin(b""), tmp_path)


def test_the_backend_needs_the_standard_library_alone() -> None:
    """It runs in pip's child process, in place of setuptools'."""
    subprocess.run([sys.executable, "-I", "-S", inert_backend.__file__], check=True)

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from handmade import tarball, wheel
from weightpager_lab.samples import SampleUnavailable
from weightpager_lab.samples.download import member, members

FILES = {"a/one.txt": b"1", "a/b/two.txt": b"2", "a/three.bin": b"3"}


@pytest.mark.parametrize("pack", [tarball, wheel])
def test_files_that_match(pack, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert dict(members(pack(FILES), "a/*.txt")) == {"a/one.txt": b"1", "a/b/two.txt": b"2"}
    (tmp_path / "archive").write_bytes(pack(FILES))
    assert member(tmp_path / "archive", "a/three.bin") == b"3"


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(SampleUnavailable, match=r"expected a regular file a/four\.txt"):
        member(tarball(FILES), "a/four.txt")


def test_hostile_names_and_links_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader writes nothing, and a link is no file, whatever it points to."""
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard"), (tarfile.FIFOTYPE, "pipe")):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        for name in ("../escaped", str(tmp_path / "absolute")):
            info = tarfile.TarInfo(name)
            info.size = 4
            archive.addfile(info, io.BytesIO(b"evil"))
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    names = [name for name, _ in members(buffer.getvalue(), "*")]
    assert names == ["../escaped", str(tmp_path / "absolute")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "secret"]
    assert list(inside.iterdir()) == []

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from handmade import pin
from weightpager_lab.samples import Archive, SampleUnavailable, download, fetch
from weightpager_lab.samples.download import Fetcher, cached

CONTENT = b"the pinned bytes"


class Registry:
    """Stands in for every client."""

    def __init__(self, content: bytes = CONTENT, file: str = "thing-1.0.tgz", wait: float = 0.0) -> None:
        self.content, self.file, self.wait, self.downloads = content, file, wait, 0

    def download(self, archive: Archive, into: Path) -> None:
        self.downloads += 1
        (into / self.file).write_bytes(self.content)
        time.sleep(self.wait)


def serve(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> Registry:
    monkeypatch.setattr(download, "download", registry.download)
    return registry


def leftovers(cache: Path, archive: Archive) -> list[str]:
    folder = cached(archive, cache).parent
    return sorted(path.name for path in folder.iterdir() if path.name != archive.file)


def test_an_archive_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = serve(monkeypatch, Registry())
    first, second = fetch(pin(CONTENT), tmp_path), fetch(pin(CONTENT), tmp_path)
    assert first == second
    assert first.read_bytes() == CONTENT
    assert registry.downloads == 1
    assert leftovers(tmp_path, pin(CONTENT)) == []


def test_other_bytes_are_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Registry(b"something else"))
    with pytest.raises(SampleUnavailable, match=f"expected SHA-256 {pin(CONTENT).sha256}, got "):
        fetch(pin(CONTENT), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_file_of_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Registry(file="thing-2.0.tgz"))
    with pytest.raises(SampleUnavailable, match=r"expected a file thing-1\.0\.tgz, got thing-2\.0\.tgz"):
        fetch(pin(CONTENT), tmp_path)


def test_a_damaged_copy_is_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = serve(monkeypatch, Registry())
    fetch(pin(CONTENT), tmp_path).write_bytes(CONTENT[:5])
    assert fetch(pin(CONTENT), tmp_path).read_bytes() == CONTENT
    assert registry.downloads == 2


def test_many_at_once_see_the_whole_file_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Registry(wait=0.05))
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: fetch(pin(CONTENT), tmp_path).read_bytes(), range(8)))
    assert paths == [CONTENT] * 8
    assert leftovers(tmp_path, pin(CONTENT)) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, Registry())
    (tmp_path / "cache").write_text("a file, not a directory")
    with pytest.raises(SampleUnavailable, match="cannot be written"):
        fetch(pin(CONTENT), tmp_path / "cache")


def test_a_fetcher_reports_downloads_and_tries_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = serve(monkeypatch, Registry(b"wrong"))
    said: list[str] = []
    fetcher = Fetcher(tmp_path, said.append)
    for _ in range(2):
        with pytest.raises(SampleUnavailable):
            fetcher(pin(CONTENT))
    assert registry.downloads == 1
    assert said == ["downloading thing 1.0 with npm"]

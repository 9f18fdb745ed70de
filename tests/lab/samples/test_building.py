from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from weightpager_lab.samples import SampleUnavailable, download
from weightpager_lab.samples.download import build_once, key_of


def test_a_directory_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "made" / "target"

    def build(directory: Path) -> None:
        (directory / "half").touch()
        assert not target.exists()
        (directory / "whole").touch()

    assert sorted(path.name for path in build_once(target, build).iterdir()) == ["half", "whole"]
    assert list(target.parent.iterdir()) == [target]


def test_it_is_built_once(tmp_path: Path) -> None:
    calls: list[Path] = []
    for _ in range(2):
        build_once(tmp_path / "target", calls.append)
    assert len(calls) == 1


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "half").touch()
        raise SampleUnavailable("no")

    with pytest.raises(SampleUnavailable, match="no"):
        build_once(tmp_path / "target", build)
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_wins(tmp_path: Path) -> None:
    barrier = Barrier(2, timeout=200)

    def build_as(name: str) -> str:
        def build(directory: Path) -> None:
            (directory / "by").write_text(name)
            barrier.wait()  # both have built before either moves

        return (build_once(tmp_path / "target", build) / "by").read_text()

    with ThreadPoolExecutor(2) as pool:
        seen = set(pool.map(build_as, ("one", "other")))
    assert seen in ({"one"}, {"other"})
    assert list(tmp_path.iterdir()) == [tmp_path / "target"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SampleUnavailable, match="cannot be written"):
        build_once(tmp_path / "file" / "target", lambda _: None)


def test_the_key_depends_on_every_part_and_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key_of(source="a", limit=1), key_of(source="b", limit=1), key_of(source="a", limit=2)}
    monkeypatch.setattr(download, "SCHEMA", download.SCHEMA + 1)
    keys.add(key_of(source="a", limit=1))
    assert len(keys) == 4

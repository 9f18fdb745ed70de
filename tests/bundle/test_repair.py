"""Mending a bundle: what can be mended is right afterwards, and nothing that was well changes."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
import weightpager as wp
from damage import KINDS, contents, damage, good_pages
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.files.new_file import beside
from weightpager.bundle.format import page_file
from weightpager.bundle.garbage import collect
from weightpager.bundle.repair import repair
from weightpager.errors import BundleError, ConfigError

relaxed = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PAGES = "pages-0000.safetensors"


def copied(bundle: Path, folder: Path, name: str = "copy.bundle") -> Path:
    shutil.rmtree(folder / name, ignore_errors=True)
    return Path(shutil.copytree(bundle, folder / name))


def damaged_files(data: st.DataObject, original: Path) -> dict[str, tuple[str, int]]:
    """Some of a bundle's files, each with a kind of damage and a seed."""
    names = sorted(set(contents(original)) - {"manifest.json", "manifest.blake3"})
    kind = st.sampled_from(KINDS)
    seeded = st.tuples(kind, st.integers(0, 2**32))
    some = st.dictionaries(st.sampled_from([PAGES, *names]), seeded, min_size=1, max_size=6)
    return data.draw(some)


@pytest.fixture
def copy(assistant_bundle: Path, tmp_path: Path) -> Path:
    return copied(assistant_bundle, tmp_path)


@pytest.fixture(scope="module")
def grown_bundle(assistant_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tasks and one more; a copy, since a grown bundle has page files in common with its base."""
    folder = tmp_path_factory.mktemp("grown")
    content = tiny.assistant(folder, sparsity=0.3)
    content["tasks"] = {"pet": tiny.classification(folder, "pet", {"cat": ["cat"], "dog": ["dog"]})}
    (folder / "more.yaml").write_text(yaml.safe_dump(content))
    wp.compile(folder / "more.yaml", out=folder / "linked.bundle", base=assistant_bundle)
    return copied(folder / "linked.bundle", folder, "grown.bundle")


@pytest.mark.slow
@relaxed
@given(data=st.data())
def test_any_damage_is_mended_from_an_intact_copy(assistant_bundle: Path, tmp_path: Path, data: st.DataObject) -> None:
    bundle, wounds = copied(assistant_bundle, tmp_path), damaged_files(data, assistant_bundle)
    for name, wound in wounds.items():
        damage(bundle / name, *wound)
    done = repair(bundle, assistant_bundle)
    assert done.problems == ()
    assert set(done.mended_files) == set(wounds) - {PAGES}
    assert contents(bundle) == contents(assistant_bundle)
    assert verify(bundle).problems == ()


@relaxed
@given(data=st.data())
def test_two_damaged_copies_mend_each_other_and_spoil_nothing(
    assistant_bundle: Path, tmp_path: Path, data: st.DataObject
) -> None:
    original, whole = Bundle.open(assistant_bundle), contents(assistant_bundle)
    one, two = copied(assistant_bundle, tmp_path, "one.bundle"), copied(assistant_bundle, tmp_path, "two.bundle")
    for bundle in (one, two):
        for name, wound in damaged_files(data, assistant_bundle).items():
            damage(bundle / name, *wound)
    before, theirs = contents(one), contents(two)
    pages, their_pages = good_pages(one, original), good_pages(two, original)
    done = repair(one, two)
    after = contents(one)
    assert contents(two) == theirs
    for name in set(whole) - {PAGES}:
        right = whole[name] in (before.get(name), theirs.get(name))
        assert after.get(name) == (whole[name] if right else before.get(name))
    if after.get("page-index.safetensors") == whole["page-index.safetensors"]:
        # A page that was cut where only zeros follow is right as soon as its file is long enough.
        assert good_pages(one, original).items() >= (pages | their_pages).items()
        assert set(done.mended_pages) <= set(their_pages) - set(pages)
        assert len(after[PAGES]) == len(whole[PAGES])
    else:
        assert after.get(PAGES) == before.get(PAGES)
    assert (done.problems == ()) == (after == whole)


def test_a_bundle_that_is_well_is_not_written_to(copy: Path, assistant_bundle: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    done = repair(copy, assistant_bundle)
    assert (done.mended_files, done.mended_frames, done.mended_pages, done.problems) == ((), (), (), ())
    assert (done.files, done.pages) == (verify(copy).files, verify(copy).pages)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_pages_that_are_well_are_not_written_again(
    copy: Path, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, written = Bundle.open(copy).page_bytes, []
    with (copy / PAGES).open("r+b") as file:
        file.seek(page_file.ALIGNMENT + 3 * size + 7)
        file.write(b"\xff\x00\xff")
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: written.append(at) or real(file, content, at))
    assert repair(copy, assistant_bundle).mended_pages == (3,)
    assert written == [page_file.ALIGNMENT + 3 * size]


def test_a_short_write_is_gone_on_with(copy: Path, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copy / PAGES).unlink()
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, at: real(file, bytes(content[:1000]), at))
    assert repair(copy, assistant_bundle).problems == ()
    assert contents(copy) == contents(assistant_bundle)


def test_a_base_is_mended_from_the_bundle_that_grew_from_it(
    copy: Path, assistant_bundle: Path, grown_bundle: Path
) -> None:
    (copy / PAGES).unlink()
    (copy / "resident.safetensors").unlink()
    shutil.rmtree(copy / "tasks/animal")
    (copy / "report.json").write_bytes(b"{}")
    done = repair(copy, grown_bundle)
    assert len(done.mended_pages) == len(Bundle.open(assistant_bundle).pages)
    assert {"resident.safetensors", "tasks/animal/private.safetensors"} <= set(done.mended_files)
    # Both have a report, but not the same one.
    assert len(done.problems) == 1
    assert "report.json: size" in done.problems[0]
    assert repair(copy, assistant_bundle).problems == ()
    assert contents(copy) == contents(assistant_bundle)


def test_a_grown_bundle_gets_from_its_base_what_both_have(
    grown_bundle: Path, assistant_bundle: Path, tmp_path: Path
) -> None:
    bundle, base = copied(grown_bundle, tmp_path), len(Bundle.open(assistant_bundle).pages)
    pages = len(Bundle.open(grown_bundle).pages)
    assert pages > base
    for path in bundle.glob("pages-*"):
        path.unlink()
    done = repair(bundle, assistant_bundle)
    assert done.mended_pages == tuple(range(base))
    assert done.mended_frames == (PAGES, "pages-0001.safetensors")
    assert len(done.problems) == pages - base
    assert all("not mended" in problem and "has no page of this id" in problem for problem in done.problems)
    assert repair(bundle, grown_bundle).problems == ()
    assert contents(bundle) == contents(grown_bundle)


def test_a_page_is_found_by_its_id_whatever_its_number(assistant_bundle: Path, tmp_path: Path) -> None:
    smaller = copied(assistant_bundle, tmp_path, "smaller.bundle")
    collect(smaller, ["animal", "weather", "number"])
    ours, theirs = Bundle.open(assistant_bundle).pages.ids, Bundle.open(smaller).pages.ids
    assert 0 < len(theirs) < len(ours)
    bundle = copied(assistant_bundle, tmp_path)
    (bundle / PAGES).unlink()
    kept = {page.tobytes() for page in theirs}
    expected = [number for number, page in enumerate(ours) if page.tobytes() in kept]
    assert expected != list(range(len(expected))), "every page has the same number in both"
    assert repair(bundle, smaller).mended_pages == tuple(expected)


def test_a_donor_without_a_manifest_or_index_is_searched_in_the_same_places(
    assistant_bundle: Path, tmp_path: Path
) -> None:
    for lost in ("manifest.json", "page-index.safetensors"):
        bundle, donor = copied(assistant_bundle, tmp_path), copied(assistant_bundle, tmp_path, "donor.bundle")
        (donor / lost).unlink()
        (bundle / PAGES).unlink()
        (bundle / "resident.safetensors").unlink()
        assert repair(bundle, donor).problems == ()
        (donor / PAGES).unlink()
        (bundle / PAGES).unlink()
        assert f"{donor}: its pages cannot be found by id: {lost}" in repair(bundle, donor).problems[-1]


def test_a_page_that_is_damaged_in_both_says_so(copy: Path, tmp_path: Path) -> None:
    (copy / PAGES).write_bytes(b"")
    done = repair(copy, copied(copy, tmp_path, "donor.bundle"))
    assert len(done.problems) == done.pages
    assert f"donor.bundle has it in {PAGES}, damaged or unreadable too" in done.problems[0]


def test_without_a_page_index_no_page_is_touched(copy: Path, tmp_path: Path) -> None:
    (copy / "page-index.safetensors").unlink()
    (copy / PAGES).write_bytes(b"something")
    (tmp_path / "empty").mkdir()
    done = repair(copy, tmp_path / "empty")
    assert "no page can be told from a damaged one" in done.problems[-1]
    assert (copy / PAGES).read_bytes() == b"something"


@pytest.mark.parametrize("name", ["manifest.json", "manifest.blake3"])
def test_a_damaged_manifest_is_said_and_nothing_is_touched(copy: Path, assistant_bundle: Path, name: str) -> None:
    (copy / name).write_bytes(b"{}")
    (copy / "resident.safetensors").unlink()
    before = contents(copy)
    with pytest.raises(BundleError, match=r"manifest\.json: BLAKE3: expected .* copy the whole bundle again"):
        repair(copy, assistant_bundle)
    assert contents(copy) == before


def test_what_cannot_be_mended_from_is_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere: expected a bundle directory to mend from, found none"):
        repair(copy, tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"nowhere: expected a bundle directory to mend, found none"):
        repair(tmp_path / "nowhere", copy)
    (tmp_path / "link").symlink_to(copy)
    with pytest.raises(ConfigError, match="name another copy"):
        repair(copy, tmp_path / "link")


def test_one_process_mends_at_a_time(copy: Path, assistant_bundle: Path) -> None:
    descriptor = os.open(copy, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(BundleError, match="another process mending it"):
        repair(copy, assistant_bundle)
    os.close(descriptor)
    assert repair(copy, assistant_bundle).problems == ()


def test_nothing_is_written_through_a_link_that_leads_out(copy: Path, assistant_bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"years of work")
    (copy / PAGES).unlink()
    (copy / PAGES).symlink_to(outside / "precious")
    shutil.rmtree(copy / "tasks/animal")
    (copy / "tasks/animal").symlink_to(outside)
    done = repair(copy, assistant_bundle)
    assert len(done.problems) == 2
    assert all("a link that leads out of it" in problem for problem in done.problems)
    assert contents(outside) == {"precious": b"years of work"}


def test_a_bundle_that_is_exchanged_meanwhile_is_not_written_to(
    copy: Path, assistant_bundle: Path, tmp_path: Path
) -> None:
    new = copied(assistant_bundle, tmp_path, "new.bundle")
    collect(new, ["animal", "weather", "number"])
    before = contents(new)
    (copy / PAGES).unlink()

    def exchange(done: int, total: int) -> None:
        if done == 1:
            copy.rename(tmp_path / "old.bundle")
            new.rename(copy)

    assert repair(copy, assistant_bundle, exchange).problems == ()
    assert contents(copy) == before
    assert contents(tmp_path / "old.bundle") == contents(assistant_bundle)


def test_what_a_killed_repair_left_is_replaced(copy: Path, assistant_bundle: Path) -> None:
    (copy / "model/config.json").unlink()
    beside(copy / "model/config.json").write_bytes(b"half")
    assert repair(copy, assistant_bundle).mended_files == ("model/config.json",)
    assert contents(copy) == contents(assistant_bundle)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_what_the_storage_refuses_is_said(copy: Path, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray((copy / PAGES).read_bytes())
    content[page_file.ALIGNMENT] ^= 1
    (copy / PAGES).write_bytes(content)
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(os, "pwrite", lambda file, content, at: os.write(full.fileno(), content))
        (problem,) = repair(copy, assistant_bundle).problems
    assert "page 0 (place 0): damaged; not mended: cannot be written: No space left on device" in problem
    assert (copy / PAGES).read_bytes() == content


def test_an_open_engine_goes_on_while_its_bundle_is_mended(copy: Path, assistant_bundle: Path) -> None:
    page = int(np.flatnonzero(Bundle.open(copy).pages.signatures)[0])
    with wp.Engine.from_pretrained(copy) as engine:
        with (copy / PAGES).open("r+b") as file:
            file.seek(page_file.ALIGNMENT + page * engine.bundle.page_bytes)
            file.write(b"\xff\x00\xff")
        task = next(task for task in engine.bundle.tasks if page in engine.bundle.pages_of(task))
        with pytest.raises(BundleError, match="--repair --from"):
            engine.activate(task)
        assert repair(copy, assistant_bundle).mended_pages == (page,)
        engine.activate(task)
        assert engine.verify() == []


def test_what_is_mended_is_as_private_as_the_bundle(copy: Path, assistant_bundle: Path) -> None:
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    shutil.rmtree(copy / "tasks")
    (copy / "pages-0000.safetensors").unlink()
    (copy / "resident.safetensors").write_bytes(b"")
    assert repair(copy, assistant_bundle).problems == ()
    found = {path: path.stat().st_mode & 0o777 for path in (copy, *copy.rglob("*"))}
    assert found == {path: 0o700 if path.is_dir() else 0o600 for path in found}

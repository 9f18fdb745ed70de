"""``compile --base``, ``repack`` and ``gc`` as commands."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import yaml

import tiny
import weightpager as wp
from command import Command
from weightpager.backends.verify import verify


def test_a_bundle_grows_and_is_tidied_up(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path)
    content["tasks"] = {"pet": tiny.classification(tmp_path, "pet", {"cat": ["cat"], "dog": ["dog"]})}
    (tmp_path / "more.yaml").write_text(yaml.safe_dump(content))
    larger, tidy = tmp_path / "larger.bundle", tmp_path / "tidy.bundle"
    grown = weightpager("compile", tmp_path / "more.yaml", "--base", assistant_bundle, "--out", larger)
    assert grown.code == 0, grown.err
    for words in ("added pet", "of blocks reused", "over-read pet"):
        assert words in grown.out
    again = weightpager("compile", tmp_path / "more.yaml", "--base", larger, "--out", tmp_path / "no.bundle")
    assert again.code == 2
    assert "has a task of that name" in again.err

    repacked = weightpager("repack", larger, "--out", tidy, "--json")
    uses = json.loads(repacked.out)
    assert uses["after"]["over_read"].keys() == set(wp.Bundle.open(larger).tasks)
    assert uses["after"]["fill"] >= uses["before"]["fill"]
    assert weightpager("repack", larger, "--out", tidy).code == 2
    smaller = weightpager("repack", larger, "--out", tidy, "--force", "--without", "pet", "--page", "8KiB")
    assert "page fill" in smaller.out
    assert "over-read: share of a task's pages" in smaller.out
    assert wp.Bundle.open(tidy).page_bytes == 8192

    dropped = weightpager("remove", larger, "pet", "weather")
    assert "pet removed" in dropped.out
    assert list(wp.Bundle.open(larger).tasks) == ["animal", "number", "colour"]
    assert json.loads(weightpager("gc", larger, "--json").out)["pages"] == 0
    assert weightpager("remove", larger, "pet").code == 2
    assert verify(larger).problems == verify(tidy).problems == ()


def test_gc_writes_another_bundle_if_asked(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in assistant_bundle.rglob("*") if file.is_file()}
    whole, smaller = tmp_path / "whole.bundle", tmp_path / "smaller.bundle"
    assert weightpager("gc", assistant_bundle, "--out", whole).code == 0
    assert list(wp.Bundle.open(whole).tasks) == list(wp.Bundle.open(assistant_bundle).tasks)
    found = weightpager("remove", assistant_bundle, "animal", "-o", smaller)
    assert f"repack {smaller} " in found.err
    assert "animal" not in wp.Bundle.open(smaller).tasks
    assert weightpager("gc", assistant_bundle, "--out", smaller).code == 2
    assert weightpager("gc", assistant_bundle, "--out", smaller, "--force").code == 0
    assert "animal" in wp.Bundle.open(smaller).tasks
    assert "--out with --force" in weightpager("gc", smaller, "--force").err
    assert {file: file.read_bytes() for file in assistant_bundle.rglob("*") if file.is_file()} == before


def test_the_next_step_after_gc_can_be_pasted(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(assistant_bundle, tmp_path / "sp ace" / "it's.bundle"))
    found = weightpager("remove", bundle, "animal")
    command = next(line for line in found.err.splitlines() if line.startswith("next: ")).partition(", which")[0]
    assert shlex.split(command)[1:4] == ["weightpager", "repack", str(bundle)]


def test_repack_keeps_the_page_size_unless_asked(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    large, same, best = (tmp_path / f"{name}.bundle" for name in ("large", "same", "best"))
    assert weightpager("repack", assistant_bundle, "--out", large, "--page", "16KiB").code == 0
    assert weightpager("repack", large, "--out", same).code == 0
    assert wp.Bundle.open(same).page_bytes == wp.Bundle.open(large).page_bytes == 16384
    assert weightpager("repack", large, "--out", best, "--page", "auto").code == 0
    assert wp.Bundle.open(best).page_bytes < 16384


def test_repack_names_the_tasks_that_read_more(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    small, large = tmp_path / "small.bundle", tmp_path / "large.bundle"
    assert "reads more than before" not in weightpager("repack", assistant_bundle, "--out", small).out
    found = weightpager("repack", small, "--out", large, "--page", "64KiB")
    uses = json.loads(weightpager("repack", small, "--out", large, "--page", "64KiB", "--force", "--json").out)
    before, after = (uses[when]["task_bytes"]["animal"] for when in ("before", "after"))
    assert after > before
    assert "to bring these tasks in reads more than before: " in found.out
    assert f"animal {after / 1024:.1f} KiB after {before / 1024:.1f} KiB" in found.out


def test_quiet_tidying_says_what_came_out_and_no_more(
    weightpager: Command, assistant_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))
    loud = weightpager("repack", bundle, "--out", tmp_path / "b.bundle")
    assert "write pages …" in loud.err
    quiet = weightpager("repack", bundle, "--out", tmp_path / "c.bundle", "-q")
    assert (quiet.code, quiet.err, "page fill" in quiet.out) == (0, "", True)
    dropped = weightpager("remove", bundle, "animal", "-q")
    assert (dropped.code, dropped.err, "animal removed" in dropped.out) == (0, "", True)


def test_a_private_bundle_stays_private(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(assistant_bundle, tmp_path / "a.bundle"))
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert weightpager("remove", bundle, "animal").code == 0
    found = {path: path.stat().st_mode & 0o777 for path in (bundle, *bundle.rglob("*"))}
    assert found == {path: 0o700 if path.is_dir() else 0o600 for path in found}

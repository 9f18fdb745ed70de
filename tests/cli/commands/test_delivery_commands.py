"""The verbs that bring bundles to other machines, as people type them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from command import Command, run
from damage import contents
from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect
from weightpager.cli.commands.pull import checks
from weightpager.engine import Engine


@pytest.fixture
def folder(assistant_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a repository of one version, and a directory for a device's bundles."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _: None)  # no test cuts the power
    shutil.copytree(assistant_bundle, "assistant.bundle")
    return tmp_path


@pytest.fixture
def published(folder: Path, weightpager: Command) -> Path:
    assert weightpager("publish", "init", "repository").code == 0
    assert weightpager("publish", "assistant.bundle", "repository").code == 0
    shutil.copy("repository/metadata/1.root.json", "root.json")
    return folder


PULL = ("pull", "repository", "assistant", "--into", "bundles")
FIRST = (*PULL, "--trust", "root.json")


def newer(weightpager: Command) -> None:
    collect("assistant.bundle", drop=["weather"])
    assert weightpager("publish", "assistant.bundle", "repository").code == 0


def test_a_repository_says_where_to_keep_what(folder: Path, weightpager: Command) -> None:
    done = weightpager("publish", "init", "repository")
    for words in ("root-1 to root-3", "targets-1", "timestamp-1", "1.root.json", "--trust"):
        assert words in done.out
    assert weightpager("publish", "init", "repository").code == 2


def test_a_repository_may_be_where_one_stands(
    folder: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("repository").mkdir()
    monkeypatch.chdir("repository")
    assert weightpager("publish", "init", ".").code == 0
    monkeypatch.chdir(folder / "repository")  # which is another directory of this name now
    assert weightpager("publish", "../assistant.bundle", ".").code == 0
    assert weightpager("publish", "refresh", ".").code == 0
    assert (folder / "repository.keys").is_dir()


def test_a_bundle_has_the_name_by_which_it_is_called(published: Path, weightpager: Command) -> None:
    assert weightpager(*FIRST).code == 0
    assert "assistant 1 is what stable gets now" in weightpager("publish", "bundles/assistant.bundle", "repository").out


def test_a_name_that_is_too_long_is_told(weightpager: Command) -> None:
    for words in (("publish", "init", "x" * 300), ("rollback", "assistant", "--into", "x" * 300)):
        done = weightpager(*words)
        assert done.code == 1
        assert done.err.startswith("error: ")


def test_a_bundle_goes_from_one_machine_to_another(published: Path, weightpager: Command) -> None:
    told = json.loads(weightpager(*FIRST, "--dry-run", "--json").out)
    assert told["outcome"] == "would install"
    assert not Path("bundles/assistant.bundle").exists()
    assert "installed" in weightpager(*PULL).out
    assert contents(Path("bundles/assistant.bundle")) == contents(Path("assistant.bundle"))
    assert "in use already" in weightpager(*PULL).out
    newer(weightpager)
    assert "0 of " in weightpager(*PULL).out  # a bundle with fewer tasks has no new pages
    assert contents(Path("bundles/assistant.bundle")) == contents(Path("assistant.bundle"))
    assert "assistant 1 is in use, 2 was" in weightpager("rollback", "assistant", "--into", "bundles").out
    assert "--again" in weightpager(*PULL).out
    assert "expected a version before" in weightpager("rollback", "assistant", "--into", "bundles").err


def test_a_failed_check_is_a_failed_command(published: Path, weightpager: Command) -> None:
    assert weightpager(*FIRST, "--check", "true").code == 0
    newer(weightpager)
    done = weightpager(*PULL, "--check", 'test "$WEIGHTPAGER_BUNDLE" = bundles/assistant.bundle && exit 3')
    assert done.code == 1
    assert "its check ended with code 3; 1 is in use" in done.err


def test_what_a_check_prints_is_no_part_of_the_json(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (("publish", "init", "repository"), ("publish", "assistant.bundle", "repository")):
        assert run(capfd, monkeypatch, *words).code == 0
    trust = ("--trust", "repository/metadata/1.root.json")
    done = run(capfd, monkeypatch, *PULL, *trust, "--json", "--check", "echo all is well")
    assert json.loads(done.out)["outcome"] == "installed"
    assert "all is well" in done.err


def test_rows_are_answered_as_they_should_be(published: Path, weightpager: Command) -> None:
    with Engine.from_pretrained("assistant.bundle") as engine:
        label = engine.predict("animal", ["red cat"])[0].label
    rows = Path("rows.jsonl")
    rows.write_text(json.dumps({"task": "animal", "text": "red cat", "label": label}) + "\n")
    assert weightpager(*FIRST, "--check-rows", rows).code == 0
    newer(weightpager)
    for row, problem in (("animal", "found"), ("weather", "unknown task")):
        rows.write_text(json.dumps({"task": row, "text": "red cat", "label": "neither"}) + "\n")
        done = weightpager(*PULL, "--check-rows", rows, "--again")
        assert done.code == 1
        assert problem in done.err
    for text, line in (("{}", 1), ("\n[1]", 2), ('\n\n{"task"', 3), ('"task text label"', 1), ("\n \n", 0)):
        rows.write_text(text)
        problem = f"rows.jsonl:{line}: expected JSON with task, text and label" if line else "at least one row"
        assert problem in weightpager(*PULL, "--check-rows", rows).err


def test_rows_may_have_any_text_and_blank_lines_between_them(published: Path, weightpager: Command) -> None:
    with Engine.from_pretrained("assistant.bundle") as engine:
        text = "red\u2028\u0085cat"
        label = engine.predict("animal", [text])[0].label
    row = json.dumps({"task": "animal", "text": text, "label": label}, ensure_ascii=False)
    Path("rows.jsonl").write_text(f"\n{row}\n \n{row}\n", encoding="utf-8")
    assert weightpager(*FIRST, "--check-rows", "rows.jsonl").code == 0


def test_a_version_that_breaks_while_it_answers_goes_back(
    published: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("rows.jsonl").write_text('{"task": "animal", "text": "red cat", "label": "cat"}')
    monkeypatch.setattr(Engine, "predict", lambda *_: 1 / 0)
    done = weightpager(*FIRST, "--check-rows", "rows.jsonl")
    assert done.code == 1
    assert "can't be answered: ZeroDivisionError: division by zero; no version is in use" in done.err


def test_a_version_that_makes_a_library_panic_goes_back(
    published: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):
        pass

    def panics(*_: object) -> None:
        raise PanicException("out of range")

    Path("rows.jsonl").write_text('{"task": "animal", "text": "red cat", "label": "cat"}')
    monkeypatch.setattr(Engine, "predict", panics)
    done = weightpager(*FIRST, "--check-rows", "rows.jsonl")
    assert done.code == 1
    assert "a library panicked: out of range; no version is in use" in done.err


def test_a_check_that_takes_too_long_ends_with_all_that_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.cli.commands.pull._SECONDS", 2)
    os.mkfifo(tmp_path / "held")
    reader = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    check = checks(f"exec 3> {tmp_path}/held; sleep 30 & wait", None)
    assert check is not None
    assert check(tmp_path) == "its check didn't end within 2 s"
    end = time.monotonic() + 10
    while is_open(reader):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.close(reader)


def is_open(reader: int) -> bool:
    """Whether anybody can write to a pipe."""
    try:
        return os.read(reader, 1) != b""
    except BlockingIOError:
        return True


def test_a_watch_goes_on_after_errors(published: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            Path("repository/metadata/timestamp.json").rename("aside")
        elif len(waits) == 2:
            Path("aside").rename("repository/metadata/timestamp.json")
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr("weightpager.cli.commands.pull.sleep", sleep)
    done = weightpager(*FIRST, "--watch", "100")
    assert done.code == 130
    assert "installed" in done.out
    assert "in use already" in done.out
    assert "timestamp.json" in done.err
    assert len(set(waits)) == 3
    assert all(80 <= wait <= 120 for wait in waits)
    again = weightpager(*FIRST, "--watch", "100", "--json")
    assert json.loads(again.out)["outcome"] == "current"
    assert len(again.out.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("pull", "nowhere", "assistant", "--into", "bundles"), "found no metadata/"),
        (("pull", "ftp://x/y", "assistant", "--into", "bundles"), "expected http://"),
        (("pull", "http://[x", "assistant", "--into", "bundles"), "expected http://"),
        (("pull", "repository", "../x", "--into", "bundles"), "name: expected"),
        (("pull", "repository", "assistant", "--into", "no/bundles", "--trust", "root.json"), "No such file"),
        ((*PULL, "--trust", "none.json"), "trust: expected"),
        ((*PULL, "--limit-rate", "fast"), "bandwidth: expected"),
        (("publish", "assistant.bundle", "repository", "--name", "A/B"), "name: expected"),
        (("publish", "refresh", "repository", "--also", "all"), "also: expected"),
        (("rollback", "assistant", "--into", "bundles"), "found no 'assistant'; here are: none"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:3]),
)
def test_wrong_words_are_named(published: Path, weightpager: Command, words: tuple[str, ...], problem: str) -> None:
    done = weightpager(*words)
    assert done.code in (1, 2)
    assert problem in done.err


def test_two_bundles_are_compared(folder: Path, weightpager: Command) -> None:
    shutil.copytree("assistant.bundle", "smaller.bundle")
    bundle = Bundle.open(Path("smaller.bundle"))
    users = Counter(page for task in bundle.tasks for page in bundle.pages_of(task).tolist())
    alone = {task: sum(users[page] == 1 for page in bundle.pages_of(task).tolist()) for task in bundle.tasks}
    task = max(alone, key=lambda each: alone[each])  # which tasks share pages depends on what they have learnt
    collect("smaller.bundle", drop=[task])
    found = json.loads(weightpager("diff", "smaller.bundle", "assistant.bundle", "--json").out)
    assert found["added"] == [task]
    new = {share["name"]: share["new"] for share in found["tasks"]}
    assert new[task] == found["new_bytes"] == alone[task] * bundle.page_bytes > 0
    assert sum(share["new"] for share in found["layers"]) == found["new_bytes"]
    told = weightpager("diff", "assistant.bundle", "smaller.bundle").out
    assert f"removed: {task}" in told
    assert "0 B of pages are new" in told

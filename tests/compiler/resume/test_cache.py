"""What compiles keep for each other: found by what it depends on, whole or not at all, within a limit."""

from __future__ import annotations

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch

import tiny
import tiny_models
import weightpager as wp
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler.prepare import train_and_measure_dense
from weightpager.compiler.resume import identities
from weightpager.compiler.resume.cache import UNFINISHED, Cache, Entry, Owner, read_entry, unfinished, write_entry
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.task_file.file import from_dict
from weightpager.config import cache_limit
from weightpager.errors import CompileError, ConfigError

OWNER = {"identity": "one"}


def megabyte(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a": torch.full((250_000,), value)}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """The user's cache, on for these tests."""
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "100MB")
    return Cache.of_user()


def stages_in(cache: Cache) -> set[str]:
    return {kept.path.name.rpartition("-")[0] for kept in cache.entries()}


class EnoughError(Exception):
    """The stages that are looked at are over."""


def stages_of(content: dict[str, Any], out: Path, until: str = "", **options: Any) -> set[str]:
    """Compile, up to the first stage so named if there is one; the stages that work was done in."""
    found: set[str] = set()

    def note(stage: str, _done: int, _total: int) -> None:
        if until and stage.startswith(until):
            raise EnoughError
        found.add(stage)

    with pytest.raises(EnoughError) if until else nullcontext():
        wp.compile(content, out=out, progress=note, **options)
    return found


def test_what_is_written_is_found_by_its_owner_only(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 10**7)
    assert cache.write("sums", OWNER, 2.5, {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1, dtype=torch.int8)})
    entry = Cache(tmp_path / "c", 10**7).read("sums", OWNER)
    assert entry is not None
    assert entry.seconds == 2.5
    assert entry.tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert cache.read("sums", {"identity": "two"}) is None
    assert cache.read("train", OWNER) is None
    assert Cache.none().read("sums", OWNER) is None
    assert not Cache.none().write("sums", OWNER, 0, {})


@pytest.mark.parametrize("damage", ["bit", "short", "empty"])
def test_a_damaged_entry_is_removed_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path / "c", 10**7)
    cache.write("train", OWNER, 0, megabyte())
    path = cache.entries()[0].path
    content = path.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    path.write_bytes({"bit": flipped, "short": content[:-9], "empty": b""}[damage])
    with caplog.at_level(logging.WARNING):
        assert cache.read("train", OWNER) is None
    assert f"{path}: damaged; removed" in caplog.text
    assert cache.entries() == []


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 3_500_000)
    for number, stage in enumerate(("one", "two", "three")):
        assert cache.write(stage, OWNER, 0, megabyte())
        os.utime(next((tmp_path / "c").glob(f"{stage}-*")), (number, number))
    assert cache.read("one", OWNER) is not None  # which uses it
    cache = Cache(tmp_path / "c", 3_500_000)  # another compile's
    assert cache.write("four", OWNER, 0, megabyte())
    assert stages_in(cache) == {"one", "three", "four"}
    assert not cache.write("large", OWNER, 0, {"a": torch.zeros(10**6)})
    assert len(cache.entries()) == 3


def test_what_a_compile_has_used_stays_until_its_end(tmp_path: Path) -> None:
    theirs, ours = (Cache(tmp_path / "c", 3_500_000) for _ in range(2))
    for stage in ("train", "old"):
        assert theirs.write(stage, OWNER, 0, megabyte())
    assert ours.read("train", OWNER) is not None
    for path in (tmp_path / "c").iterdir():  # the training takes longer than whatever others do
        os.utime(path, (path.name.startswith("old"),) * 2)
    written = [ours.write(stage, OWNER, 0, megabyte()) for stage in ("sums-a", "sums-b", "sums-c")]
    assert written == [True, True, False]
    assert stages_in(ours) == {"train", "sums-a", "sums-b"}


def killed_while_writing(folder: Path) -> Path:
    """What a killed process leaves of an entry."""
    left = folder / f"{UNFINISHED}killed"
    left.mkdir(parents=True)
    (left / ".tmpXYZ").write_bytes(b"half")
    return left


def test_what_killed_processes_were_writing_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    cache, left = Cache(tmp_path / "c", 10**7), killed_while_writing(tmp_path / "c")
    with unfinished(tmp_path / "c" / "other.safetensors") as file:
        file.write_bytes(b"slow")
        assert cache.write("one", OWNER, 0, megabyte())
        assert not left.exists()
    assert (tmp_path / "c" / "other.safetensors").read_bytes() == b"slow"


def test_clearing_removes_what_killed_processes_were_writing(tmp_path: Path) -> None:
    cache, left = Cache(tmp_path / "c", 10**7), killed_while_writing(tmp_path / "c")
    assert cache.clear() == 0
    assert not left.exists()


def test_an_old_entry_that_is_adopted_is_as_good_as_new(tmp_path: Path) -> None:
    part = Journal(tmp_path / "j", "compile").part("dense", "dense", Cache(tmp_path / "c", 2_500_000))
    part.write("train", 3, megabyte())
    os.utime(tmp_path / "j" / "dense" / "train.safetensors", (0, 0))
    theirs = Cache(tmp_path / "c", 2_500_000)
    assert theirs.write("old", OWNER, 0, megabyte())
    os.utime(theirs.entries()[0].path, (1, 1))
    assert part.give_to_cache("train") is None
    assert Cache(tmp_path / "c", 2_500_000).write("new", OWNER, 0, megabyte())
    assert stages_in(theirs) == {"train", "new"}


def test_a_whole_entry_that_takes_a_damaged_ones_place_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (Cache(tmp_path / "c", 10**7) for _ in range(2))
    assert ours.write("train", OWNER, 1, megabyte())
    ours.entries()[0].path.write_bytes(b"damaged")

    def reading(path: Path, owner: Owner) -> Entry | None:
        found = read_entry(path, owner)
        assert theirs.write("train", OWNER, 1, megabyte())
        return found

    monkeypatch.setattr("weightpager.compiler.resume.cache.read_entry", reading)
    assert ours.read("train", OWNER) is None
    assert theirs.read("train", OWNER) is not None


def test_a_storage_that_refuses_is_said_once_and_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "c", 10**7)
    with caplog.at_level(logging.WARNING):
        assert not cache.write("one", OWNER, 0, megabyte())
        assert not cache.write("two", OWNER, 0, megabyte())
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'file' / 'c'}: nothing is kept for other compiles: Not a directory"
    ]


def test_a_folder_that_cannot_be_looked_into_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As one that lies in another user's does."""
    cache = Cache(tmp_path / ("long" * 100) / "c", 10**7)
    assert cache.entries() == []
    assert cache.read("one", OWNER) is None
    assert not cache.write("one", OWNER, 0, megabyte())
    assert f"{cache.folder}: nothing is kept for other compiles: File name too long" in caplog.messages


def test_two_that_write_the_same_entry_leave_a_whole_one(tmp_path: Path) -> None:
    one, two = (Cache(tmp_path / "c", 10**7) for _ in range(2))
    assert one.write("train", OWNER, 1, megabyte())
    entry = one.read("train", OWNER)
    assert two.write("train", OWNER, 1, megabyte())  # while the first one still looks at its own
    assert entry is not None
    assert (entry.tensors["a"] == 1).all()
    assert len(one.entries()) == 1


def test_two_machines_write_beside_each_other_with_equal_process_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (Cache(tmp_path / "c", 10**7) for _ in range(2))

    def writing(path: Path, owner: Owner, entry: Entry) -> None:
        write_entry(path, owner, entry)
        monkeypatch.setattr("weightpager.compiler.resume.cache.write_entry", write_entry)
        assert two.write("train", OWNER, 1, megabyte())

    monkeypatch.setattr("weightpager.compiler.resume.cache.write_entry", writing)
    assert one.write("train", OWNER, 1, megabyte())
    assert stages_in(one) == {"train"}


def test_a_journal_gives_a_finished_stage_to_the_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 10**7)
    part = Journal(tmp_path / "j", "compile").part("dense", "dense", cache)
    part.write("train", 3, {"a": torch.ones(2)})
    assert part.give_to_cache("train") is None
    assert part.is_in_cache("train")
    assert (tmp_path / "j" / "dense" / "train.safetensors").samefile(cache.entries()[0].path)  # it takes no more bytes
    assert part.resumable() == ["the dense model's training (whole, in the cache)"]
    other = Journal(tmp_path / "other", "another").part("dense", "dense", cache)
    step, tensors = other.read("train") or (0, {})
    assert (step, tensors["a"].tolist()) == (3, [1.0, 1.0])
    assert other.give_to_cache("train") is not None
    assert other.earlier == 0.0
    assert Journal(tmp_path / "j", "compile").part("dense", "changed", cache).read("train") is None


def test_a_journal_keeps_what_the_cache_forgets(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c", 10**7)
    part = Journal(tmp_path / "j", "compile").part("dense", "dense", cache)
    part.write("train", 3, megabyte(), seconds=60.0)
    part.give_to_cache("train")
    cache.clear()
    again = Journal(tmp_path / "j", "compile").part("dense", "dense", cache)
    assert (again.read("train") or (0, {}))[0] == 3
    assert again.earlier == 60.0
    assert again.give_to_cache("train") is None
    assert len(cache.entries()) == 1


@pytest.mark.parametrize("linked", [True, False])
def test_what_appears_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool) -> None:
    synced, replaced = [], []
    sync, replace = os.fsync, Path.replace

    def syncing(descriptor: int) -> None:
        sync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def replacing(path: Path, to: Path) -> Path:
        replaced.append(path.stat().st_ino)
        assert replaced[-1] in synced
        return replace(path, to)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", replacing)
    if not linked:
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError(18, "Invalid cross-device link")))
    cache = Cache(tmp_path / "c", 10**7)
    part = Journal(tmp_path / "j", "compile").part("dense", "dense", cache)
    part.write("train", 3, megabyte())
    part.give_to_cache("train")
    cache.write("sums", OWNER, 0, megabyte())
    assert len(set(replaced)) == (2 if linked else 3)


@pytest.mark.slow
def test_a_compile_that_trains_nothing_gives_no_training_to_the_cache(tmp_path: Path) -> None:
    cache, folder = Cache(tmp_path / "c", 10**8), tmp_path / "j"
    Journal(folder, "of tasks without heads").part("dense", "of these").write("train", 3, megabyte())
    train_and_measure_dense(from_dict(tiny.writer(tmp_path)), CompileRun(journal=Journal(folder, "ours")), cache=cache)
    assert stages_in(cache) == {"scores-animals", "scores-numbers"}


@pytest.mark.slow
def test_a_sweep_trains_and_calibrates_once(tmp_path: Path, user: Cache, caplog: pytest.LogCaptureFixture) -> None:
    content = tiny.assistant(tmp_path, compare="dense")
    work = {"train the dense model", *(f"measure dense {name}" for name in content["tasks"])}
    assert work <= stages_of(content, tmp_path / "first.bundle")
    changes = [
        {"sparsity": 0.4},
        {"alignment": 1.0},
        {"dtype": "int8"},
        {"block": "16x16", "recover": "closed-form"},
        {"reorder": False},
    ]
    for number, change in enumerate(changes):
        with caplog.at_level(logging.INFO):
            assert not work & stages_of(content | change, tmp_path / f"{number}.bundle", until="control")
        assert "the dense model: taken from the cache, less than a minute saved" in caplog.text
        assert "calibration of animal, weather, number, colour: taken from the cache" in caplog.text
        caplog.clear()
    for change in ({"training": {"steps": 13, "batch": 8}}, {"training": {"steps": 12, "batch": 8, "seed": 1}}):
        assert "train the dense model" in stages_of(content | change, tmp_path / "other.bundle", until="calibrate")


def test_other_calibration_texts_need_no_other_dense_model(tmp_path: Path, user: Cache) -> None:
    content = tiny.assistant(tmp_path, compare="dense")
    stages_of(content, tmp_path / "first.bundle")
    again = content | {"calibration": content["calibration"] | {"seed": 1}}
    found = stages_of(again, tmp_path / "again.bundle")
    assert "calibrate" in found
    assert not any(stage.startswith(("train", "measure dense")) for stage in found)


@pytest.mark.slow
def test_a_bundle_from_the_cache_is_the_one_that_it_would_be_without(tmp_path: Path, user: Cache) -> None:
    content = tiny.assistant(tmp_path, recover={"method": "finetune", "steps": 8, "batch": 8})
    stages_of(content | {"sparsity": 0.3}, tmp_path / "warm.bundle", until="fine-tune")
    stages_of(content, tmp_path / "cached.bundle")
    assert "train the dense model" in stages_of(content, tmp_path / "alone.bundle", cache=False)
    cached, alone = (wp.Bundle.open(tmp_path / f"{name}.bundle") for name in ("cached", "alone"))
    assert (cached.pages.ids == alone.pages.ids).all()
    ours, theirs = read_report(cached), read_report(alone)
    assert ours.tasks == theirs.tasks
    assert cached.manifest.tasks == alone.manifest.tasks


@pytest.mark.slow
def test_new_data_is_learnt_from(tmp_path: Path, user: Cache) -> None:
    content = tiny.assistant(tmp_path, compare="dense")
    stages_of(content, tmp_path / "a.bundle", until="control")
    held_out = Path(content["tasks"]["animal"]["eval"])
    held_out.write_text(held_out.read_text() * 2)
    stages = stages_of(content, tmp_path / "b.bundle", until="control")
    assert "measure dense animal" in stages
    assert "train the dense model" not in stages
    learnt = Path(content["tasks"]["animal"]["train"])
    learnt.write_text(learnt.read_text() * 2)
    assert "train the dense model" in stages_of(content, tmp_path / "c.bundle", until="calibrate")


@pytest.mark.slow
def test_nothing_is_kept_without_a_cache(tmp_path: Path, user: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tiny.assistant(tmp_path)
    stages_of(content, tmp_path / "a.bundle", cache=False)
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "0")
    stages_of(content, tmp_path / "b.bundle")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match="WEIGHTPAGER_CACHE_LIMIT: size: expected a number .*, or 0 to keep nothing"):
        stages_of(content, tmp_path / "c.bundle")
    monkeypatch.delenv("WEIGHTPAGER_CACHE_LIMIT")
    assert cache_limit() == 8 << 30


@pytest.mark.slow
def test_added_tasks_are_kept_by_their_base(tmp_path: Path, user: Cache) -> None:
    content = tiny.assistant(tmp_path)
    new = content | {"tasks": {"animal": content["tasks"].pop("animal")}}
    new = {key: value for key, value in new.items() if key not in ("block", "page", "dtype")}
    stages_of(content, tmp_path / "base.bundle")
    grown = {"base": tmp_path / "base.bundle"}
    assert "train the dense model" in stages_of(new, tmp_path / "a.bundle", until="measure animal", **grown)
    again = stages_of(new | {"alignment": 1.0}, tmp_path / "b.bundle", until="measure animal", **grown)
    assert "train the dense model" not in again


@pytest.mark.slow
def test_an_interrupted_training_goes_on_under_other_settings(tmp_path: Path, user: Cache) -> None:
    content, seen = tiny.assistant(tmp_path), []

    def interrupted(stage: str, done: int, _total: int) -> None:
        if stage == "train the dense model":
            seen.append(done)
            if seen == [1, 2, 3, 4, 5]:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"kept in .*: the dense model's training up to step 5\. The same"):
        wp.compile(content, out=tmp_path / "a.bundle", progress=interrupted)
    wp.compile(content | {"sparsity": 0.4}, out=tmp_path / "a.bundle", progress=interrupted)
    assert seen == list(range(1, content["training"]["steps"] + 1))


def test_clearing_says_what_it_could_not_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "c", 10**7)
    cache.write("one", OWNER, 0, megabyte())

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(CompileError, match=r"cannot remove .*: Permission denied"):
            cache.clear()
    assert cache.clear() > 10**6
    assert cache.entries() == []


@pytest.mark.parametrize("code", ["own_code", "_native_code"])
def test_what_other_code_has_trained_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    task_file = from_dict(tiny.assistant(tmp_path))
    found = identities.stage_identities(task_file, "")
    assert found == identities.stage_identities(task_file, "")
    monkeypatch.setattr(identities, code, lambda: "other code")
    assert not set(found) & set(identities.stage_identities(task_file, ""))


@pytest.mark.parametrize("name", ["chat_template.jinja", "qwen.tiktoken"])
def test_whatever_a_tokenizer_reads_counts(tmp_path: Path, name: str) -> None:
    task_file = from_dict(tiny.clerk(tmp_path))
    file = task_file.model / name
    file.write_text("one", encoding="utf-8")
    stages, whole = identities.stage_identities(task_file, ""), identities.compile_identity(task_file)
    file.write_text("two", encoding="utf-8")
    assert not set(stages) & set(identities.stage_identities(task_file, ""))
    assert whole != identities.compile_identity(task_file)


def test_classes_in_another_order_are_learnt_anew(tmp_path: Path) -> None:
    content = tiny.camera(tmp_path)
    content["tasks"] = {"colour": content["tasks"]["colour"]}
    named = [str(path.relative_to(tmp_path)) for path in sorted((tmp_path / "colour").rglob("*.png"))]
    found = set()
    for ending, labels in ((".jsonl", range(11)), (".jsonl", map(str, range(11))), (".csv", range(11))):
        rows = [{"image": image, "label": label} for image, label in zip(named, labels, strict=False)]
        path = tmp_path / f"train{ending}"
        if ending == ".csv":
            path.write_text("image,label\n" + "".join(f"{row['image']},{row['label']}\n" for row in rows))
        else:
            tiny_models.jsonl(path, rows)
        content["tasks"]["colour"]["train"] = str(path)
        task_file = from_dict(content)
        found |= {identities.stage_identities(task_file, "")[0], identities.compile_identity(task_file)}
    assert len(found) == 6


@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_same_file_read_as_another_kind_counts(tmp_path: Path, split: str) -> None:
    content = tiny.writer(tmp_path)
    found = set()
    for name in ("texts.csv", "texts.txt"):
        (tmp_path / name).write_text("text\n" + "red blue green " * 20, encoding="utf-8")
        content["tasks"]["animals"][split] = str(tmp_path / name)
        found.add(identities.stage_identities(from_dict(content), "")[1])
    assert len(found) == 2


def test_code_that_reads_data_or_runs_models_counts() -> None:
    wanted = {"task_data/images.py", "readers/tokenizer.py", "nn/__init__.py", "backends/torch/architecture.py"}
    with patch.object(identities, "hash_file", wraps=identities.hash_file) as hashed:
        identities.own_code.__wrapped__()
    package = Path(wp.__file__).parent
    assert wanted <= {str(call.args[0].relative_to(package)) for call in hashed.call_args_list}


def test_scores_of_float32_are_measured_for_themselves(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path)
    files = [from_dict(content | {"dtype": dtype}) for dtype in ("int4", "int8", "float32")]
    found = [identities.stage_identities(file, "") for file in files]
    assert found[0] == found[1]
    assert [a == b for a, b in zip(found[1], found[2], strict=True)] == [True, False, True]


@pytest.mark.parametrize(("recover", "trained", "goes_on"), [
    ("closed-form", True, False), ({"method": "finetune", "start": "closed-form"}, True, False),
    ("finetune", True, False), ("none", True, False), ("closed-form", False, True),
])  # fmt: skip
def test_a_compile_goes_on_from_the_dense_model_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recover: Any, trained: bool, goes_on: bool
) -> None:
    content = tiny.assistant(tmp_path) if trained else tiny.writer(tmp_path)
    task_file = from_dict(content | {"recover": recover})
    here = identities.compile_identity(task_file)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert (identities.compile_identity(task_file) == here) == goes_on


@pytest.mark.parametrize("trained", [True, False])
def test_a_model_trained_in_another_arithmetic_is_another(tmp_path: Path, trained: bool) -> None:
    task_file = from_dict((tiny.assistant if trained else tiny.writer)(tmp_path))
    found = []
    for bfloat16 in (True, False):
        with patch("weightpager.compiler.training.device._stated.pays", bfloat16):
            found.append((identities.stage_identities(task_file, "")[0], identities.compile_identity(task_file)))
    assert [a == b for a, b in zip(*found, strict=True)] == [False, not trained]


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file"), RuntimeError("Too many open files")])
def test_an_entry_that_cannot_be_read_now_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    cache = Cache(tmp_path / "c", 10**7)
    cache.write("train", OWNER, 0, megabyte())
    with monkeypatch.context() as patched:
        patched.setattr("weightpager.compiler.resume.cache.safe_open", Mock(side_effect=error))
        assert cache.read("train", OWNER) is None
    assert "damaged" not in caplog.text
    assert cache.read("train", OWNER) is not None

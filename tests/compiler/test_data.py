"""Files of texts and labels to batches."""

from __future__ import annotations

import csv
import re
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import datasets
import msgspec
import numpy as np
import pandas
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny as tiny_files
import tiny_models as tiny
from weightpager.answers.kinds import IGNORED
from weightpager.bundle import EvalData, TaskEntry
from weightpager.compiler import data, task_file
from weightpager.compiler.data import TaskData, collate_texts
from weightpager.compiler.task_file.sections import TaskSpec
from weightpager.errors import BundleFormatError, CompileError
from weightpager.task_data.held_out import read_held_out
from weightpager.task_data.texts import Example, first_pieces

TOKENIZER = tiny.tokenizer()
PLAIN = tiny.tokenizer(special=False)
PLAIN.pad_token = PLAIN.eos_token
PADDED = partial(collate_texts, pad=0)


pytestmark = pytest.mark.usefixtures("no_network")


def either(texts: str) -> str:
    """Any of texts between bars: older versions of datasets refuse columns of mixed type themselves."""
    return "|".join(map(re.escape, texts.split("|")))


def spec(kind: str, train: Path, held_out: Path, **more: Any) -> TaskSpec:
    return TaskSpec.model_validate({"kind": kind, "train": train, "eval": held_out, **more})


def texts(folder: Path, train: list[dict[str, Any]], **more: Any) -> TaskSpec:
    paths = tiny.jsonl(folder / "train.jsonl", train), tiny.reviews(folder / "eval.jsonl", 4)
    return spec("text-classification", *paths, **more)


def words(folder: Path, train: list[dict[str, Any]]) -> TaskSpec:
    paths = tiny.jsonl(folder / "train.jsonl", train), tiny.tagged(folder / "eval.jsonl", 4)
    return spec("token-classification", *paths)


def read(task: TaskSpec, length: int = 16, tokenizer: Any = TOKENIZER) -> TaskData:
    return data.load("spam", task, tokenizer, data.classes("spam", task) if task.labelled else (), length)


def test_texts(tmp_path: Path) -> None:
    rows = [{"text": "the good film", "label": "yes"}, {"text": "bad", "label": "no"}]
    task = texts(tmp_path, rows)
    tiny.jsonl(task.eval, [{"text": "ungood", "label": "yes"}])
    found = read(task)
    assert found.classes == ("no", "yes")
    assert found.train == (Example([2, 11, 4, 10, 3], 1), Example([2, 5, 3], 0))
    assert found.eval == (Example([2, 6, 7, 3], 1),)
    assert found.validation is None
    batch = found.collate(found.train)
    assert batch.inputs["input_ids"].tolist() == [[2, 11, 4, 10, 3], [2, 5, 3, 0, 0]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.labels.tolist() == [1, 0]


def test_words_are_labelled_on_their_first_piece(tmp_path: Path) -> None:
    task = words(tmp_path, [{"tokens": ["the", "ungood", "film"], "tags": ["DET", "ADJ", "NOUN"]}])
    found = read(task)
    assert found.classes == ("ADJ", "DET", "NOUN")
    assert found.train == (Example([2, 11, 6, 7, 10, 3], [IGNORED, 1, 0, IGNORED, 2, IGNORED]),)
    batch = found.collate([*found.train, Example([2, 3], [IGNORED, IGNORED])])
    assert batch.labels.tolist() == [[IGNORED, 1, 0, IGNORED, 2, IGNORED], [IGNORED] * 6]


def test_words_are_cut_with_their_labels(tmp_path: Path) -> None:
    task = words(tmp_path, [{"tokens": ["the", "ungood", "film"], "tags": ["DET", "ADJ", "NOUN"]}])
    assert read(task, 4).train == (Example([2, 11, 6, 3], [IGNORED, 1, 0, IGNORED]),)


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.text("ab", min_size=1, max_size=5), st.integers(0, 9)), min_size=1), st.data(), st.booleans()
)
def test_first_pieces(tagged: list[tuple[str, int]], drawn: st.DataObject, blank_joins: bool) -> None:
    """Cut every word anywhere; the blank before a word may belong to its first piece."""
    spans, expected, start = [(0, 0)], [IGNORED], 0
    for word, tag in tagged:
        cuts = sorted(drawn.draw(st.sets(st.integers(1, len(word) - 1)))) if len(word) > 1 else []
        edges = [0, *cuts, len(word)]
        pieces = [(start + a, start + b) for a, b in pairwise(edges)]
        if blank_joins and start:
            pieces[0] = (start - 1, pieces[0][1])
        spans, expected = spans + pieces, expected + [tag] + [IGNORED] * (len(pieces) - 1)
        start += len(word) + 1
    found = first_pieces([word for word, _ in tagged], [tag for _, tag in tagged], [*spans, (0, 0)])
    assert found == [*expected, IGNORED]


def test_windows(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("the film\n\nthe film " * 10)
    tiny.jsonl(tmp_path / "eval.jsonl", [{"body": "one two one two"}, {"body": "good bad good bad good bad good"}])
    found = read(
        spec("language-modeling", tmp_path / "train.txt", tmp_path / "eval.jsonl", text="body"), 8, tokenizer=PLAIN
    )
    assert len(found.train) == 40 // 8
    assert found.train[0] == Example([11, 10] * 4, [11, 10] * 4)
    assert [example.tokens for example in found.eval] == [[12, 13, 12, 13, 3, 4, 5, 4]]
    batch = found.batches(found.eval, 4)[0]
    assert torch.equal(batch.inputs["input_ids"], batch.labels)


def test_windows_begin_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    for split in ("train", "eval"):
        (tmp_path / f"{split}.txt").write_text("the film\n\nthe film " * 10)
    found = read(spec("language-modeling", tmp_path / "train.txt", tmp_path / "eval.txt"), 8)
    begin, pair = TOKENIZER.cls_token_id, [11, 10]
    assert len(found.train) == 40 // 7
    assert [list(example.tokens) for example in found.train[:2]] == [[begin, *pair * 3, 11], [begin, 10, *pair * 3]]
    assert list(found.train[0].label) == [IGNORED, *pair * 3, 11]


def test_windows_come_in_batches_of_bounded_tokens() -> None:
    windows = tuple(Example([1] * 512, [1] * 512) for _ in range(9))
    found = TaskData("language-modeling", (), windows, windows, None, PADDED)
    assert [batch.items for batch in found.batches(windows, 32)] == [4, 4, 1]
    assert [batch.items for batch in found.calibration(5, 2)] == [2, 2, 1]


def test_items_caps_held_out_data_only(tmp_path: Path) -> None:
    paths = [tiny.reviews(tmp_path / f"{name}.jsonl", 12) for name in ("train", "eval", "dev")]
    found = read(spec("text-classification", *paths[:2], validation=paths[2], items=5))
    assert (len(found.train), len(found.eval), len(found.validation or ())) == (12, 5, 5)
    assert found.eval == found.train[:5]


@pytest.mark.parametrize("items", [1, 2, 3, 5])
def test_items_caps_windows(tmp_path: Path, items: int) -> None:
    train = tmp_path / "train.txt"
    train.write_text("the film " * 4)
    held_out = tiny.jsonl(tmp_path / "eval.jsonl", [{"text": "one two good bad good"}] * 5)
    whole = read(spec("language-modeling", train, held_out), 8, tokenizer=PLAIN)
    capped = read(spec("language-modeling", train, held_out, items=items), 8, tokenizer=PLAIN)
    assert len(whole.eval) == 3
    assert capped.eval == whole.eval[:items]


def test_what_lies_behind_the_items_is_not_looked_at(tmp_path: Path) -> None:
    held_out = tiny.jsonl(
        tmp_path / "longer.jsonl", [{"text": "good", "label": label} for label in ("yes", "no", "unheard of")]
    )
    task = texts(tmp_path, [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}], items=2)
    assert len(read(task.model_copy(update={"eval": held_out})).eval) == 2
    with pytest.raises(CompileError, match="row 3: expected one of the labels no, yes, found 'unheard of'"):
        read(task.model_copy(update={"eval": held_out, "items": 3}))


def test_formats_agree(tmp_path: Path) -> None:
    rows = [{"text": "good, film", "label": "NA"}, {"text": 'a "bad"\nfilm', "label": "null"}]
    task = texts(tmp_path, rows)
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        with (tmp_path / f"train.{suffix}").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"], delimiter=separator)
            writer.writeheader()
            writer.writerows(rows)
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    for suffix in ("jsonl", "csv", "tsv", "parquet"):
        other = task.model_copy(update={"train": tmp_path / f"train.{suffix}"})
        assert data.classes("spam", other) == ("NA", "null")
        tiny.jsonl(task.eval, rows[:1])
        assert read(other).train == read(task).train


def test_parquet_class_names(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features(
        {"tokens": datasets.Sequence(datasets.Value("string")), "tags": datasets.Sequence(names)}
    )
    table = datasets.Dataset.from_dict({"tokens": [["the", "film"]], "tags": [[1, 0]]}, features=features)
    datasets.disable_progress_bars()
    table.to_parquet(tmp_path / "train.parquet")
    task = words(tmp_path, [{}]).model_copy(update={"train": tmp_path / "train.parquet"})
    assert data.classes("spam", task) == ("no", "yes")


def test_numbers_are_classes_in_their_own_order(tmp_path: Path) -> None:
    task = texts(tmp_path, [{"text": "a", "label": number} for number in (10, 9, 2, 10)])
    assert data.classes("spam", task) == ("2", "9", "10")


def test_the_same_label_as_text_and_number_is_one_class(tmp_path: Path) -> None:
    task = texts(tmp_path, [{"text": "a", "label": 1}, {"text": "a", "label": "1"}])
    with pytest.raises(
        CompileError, match=either("expected at least two different labels, found 1|Column(/label) changed")
    ):
        data.classes("spam", task)


def test_an_unnamed_head_takes_numbers(tmp_path: Path) -> None:
    task = texts(tmp_path, [{"text": "a", "label": number} for number in (1, 0)])
    tiny.jsonl(task.eval, [{"text": "a", "label": "LABEL_1"}])
    found = data.load("spam", task, TOKENIZER, ("LABEL_0", "LABEL_1"), 8)
    assert [example.label for example in found.train + found.eval] == [1, 0, 1]


LABELLED = [{"text": "a", "label": "x"}, {"text": "a", "label": "y"}]


def test_what_is_wrong_with_commas_that_nobody_quoted(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("text,label\nSmith, John,person\nParis, France,place\n", encoding="utf-8")
    with pytest.raises(
        CompileError, match="cannot be read as csv: row 1: expected a value for each column, found more"
    ):
        read(texts(tmp_path, []).model_copy(update={"train": tmp_path / "names.csv"}))


@pytest.mark.parametrize(
    ("name", "separator", "words"),
    [
        ("a.csv", ";", "separated by commas, found ';' in the first line; a .csv has commas, a .tsv has tabs"),
        ("a.csv", "\t", "separated by commas, found tabs"),
        ("a.tsv", ",", "separated by tabs, found commas"),
    ],
)
def test_another_separator_is_named(tmp_path: Path, name: str, separator: str, words: str) -> None:
    path = tmp_path / name
    path.write_text("\n".join(map(separator.join, (("text", "label"), ("well, so", "x"), ("no", "y")))))
    with pytest.raises(CompileError, match=re.escape(words)):
        read(texts(tmp_path, []).model_copy(update={"train": path}))


def test_what_is_wrong_is_said_in_few_words(tmp_path: Path) -> None:
    scores = [{"text": "good", "label": f"{number / 1000}"} for number in range(1000)]
    with pytest.raises(CompileError, match=r"labels 0.0, 0.001, .*, … \(1000 in all\), found 'good'") as unknown:
        read(texts(tmp_path, scores))
    table = pandas.DataFrame([{"text": {"bytes": bytes(100_000)}, "label": label} for label in ("good", "bad")])
    table.to_parquet(tmp_path / "held.parquet")
    with pytest.raises(CompileError, match="row 1: expected 'text' to be text, found {'bytes': b'") as held:
        read(texts(tmp_path, []).model_copy(update={"train": tmp_path / "held.parquet"}))
    assert max(len(str(error.value)) for error in (unknown, held)) < 800


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ([], "expected at least one row, found an empty file"),
        ([{"text": "a", "kind": "x"}], "expected a column 'label', found kind, text"),
        ([{"text": "a", "label": "x"}] * 2, "expected at least two different labels, found x"),
        ([*LABELLED, {"text": "a", "label": None}], "row 3: expected a value for 'label', found none"),
        ([*LABELLED, {"text": "a"}], "row 3: expected a value for 'label', found none"),
        ([*LABELLED, {"text": 7, "label": "x"}], "row 3: expected 'text' to be text, found 7|Column(/text) changed"),
        ([*LABELLED, {"text": None, "label": "x"}], "row 3: expected a value for 'text', found none"),
        ([{"text": "a", "label": 0.5}] * 2, "row 1: expected 'label' to be text or a whole number, found 0.5"),
        ([{"text": "a", "label": ["x"]}] * 2, "row 1: expected 'label' to be text or a whole number, found ['x']"),
        ([{"body": "a", "label": "x"}, {"body": "a", "label": "y"}], "expected a column 'text', found body, label"),
        (LABELLED, "tasks.spam.eval (EVAL): row 1: expected one of the labels x, y, found 'good'"),
    ],
)
def test_says_what_is_wrong_with_texts(tmp_path: Path, train: list[dict[str, Any]], expected: str) -> None:
    task = texts(tmp_path, train)
    if "eval" not in expected:
        tiny.jsonl(task.eval, LABELLED)
    with pytest.raises(CompileError, match=either(expected.replace("EVAL", str(task.eval)))) as caught:
        read(task)
    assert str(caught.value).startswith("tasks.spam.")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"tokens": ["the"], "tags": ["DET", "ADJ", "NOUN"]},
            "row 2: expected one tag per token, found 1 tokens and 3",
        ),
        ({"tokens": "the", "tags": ["DET"]}, "row 2: expected a list of words, found 'the'|Column(/tokens) changed"),
        ({"tokens": [], "tags": []}, "row 2: expected a list of words, found []"),
        ({"tokens": ["the", ""], "tags": ["DET", "ADJ"]}, "row 2: expected a list of words, found ['the', '']"),
        (
            {"tokens": ["the"], "tags": "DET"},
            "row 2: expected 'tags' to be a list of labels, found 'DET'|Column(/tags) changed",
        ),
    ],
)
def test_says_what_is_wrong_with_words(tmp_path: Path, row: dict[str, Any], expected: str) -> None:
    good = {"tokens": ["the", "film", "ungood"], "tags": ["DET", "NOUN", "ADJ"]}
    with pytest.raises(CompileError, match=either(expected)):
        read(words(tmp_path, [good, row]))


def test_says_how_short_a_text_is(tmp_path: Path) -> None:
    paths = tiny.prose(tmp_path / "train.txt", 50), tiny.prose(tmp_path / "eval.txt", 5)
    with pytest.raises(CompileError, match=r"tasks\.spam\.eval .*at least one window of 8 tokens, found 5 tokens"):
        read(spec("language-modeling", *paths), 8, tokenizer=PLAIN)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("train.jsonl", b'{"text": "a", "label"\n', "cannot be read as json"),
        ("train.jsonl", b'{"text": "\xe9", "label": "x"}\n', "cannot be read as json"),
        ("train.jsonl", b"\n\n", "expected at least one row, found an empty file"),
        ("train.csv", b'text,label\n"a,x\n', "cannot be read as csv"),
        ("train.csv", b"text,label\n", "expected at least one row, found an empty file"),
        ("train.parquet", b"nonsense", "cannot be read as parquet"),
        ("train.txt", b"text", r"expected a file of \.jsonl, \.json, \.csv, \.tsv, \.parquet, found '\.txt'"),
    ],
)
def test_refuses_broken_files(
    tmp_path: Path, name: str, content: bytes, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    task = texts(tmp_path, []).model_copy(update={"train": tmp_path / name})
    task.train.write_bytes(content)
    with pytest.raises(CompileError, match=expected):
        data.classes("spam", task)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("broken", [b'{"text": "a", "label"', b"hello", b"[1, 2]", b'"hello"', b'{"text": "\xe9"}'])
@pytest.mark.parametrize("before", [1, 11_000])
def test_rows_that_are_no_json_are_counted_from_1_and_from_the_first_one(
    tmp_path: Path, broken: bytes, before: int
) -> None:
    expected = "UTF-8, found the byte 0xe9 at 10 of the line; save" if b"\xe9" in broken else "a JSON object, found"
    task = texts(tmp_path, [])
    row = b'{"text": "%s", "label": "x"}\n' % (b"word " * 200)  # the reader takes 10 MB at a time
    task.train.write_bytes(row * before + b"\n" + broken + b"\n" + row)
    with pytest.raises(CompileError, match=rf"cannot be read as json: row {before + 1}: expected {expected}"):
        data.classes("spam", task)


def test_objects_that_span_lines_are_not_blamed_by_line(tmp_path: Path) -> None:
    task = texts(tmp_path, []).model_copy(update={"train": tmp_path / "train.json"})
    task.train.write_text('{\n "text": "a", "label": "x"\n}\n{\n "text": "b", "label"\n}\n', encoding="utf-8")
    with pytest.raises(CompileError, match="cannot be read as json: ") as refused:
        data.classes("spam", task)
    assert "expected a JSON object" not in str(refused.value)


def test_refuses_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"\xff\xfe\x00")
    task = spec("language-modeling", tmp_path / "train.txt", tiny.prose(tmp_path / "eval.txt"))
    with pytest.raises(CompileError, match="cannot be read as text"):
        read(task, 8, tokenizer=PLAIN)


def test_refuses_what_tokenises_to_nothing(tmp_path: Path) -> None:
    task = texts(tmp_path, [*LABELLED, {"text": "  ", "label": "x"}])
    tiny.jsonl(task.eval, LABELLED)
    with pytest.raises(CompileError, match="row 3: expected a text, found nothing to tokenise"):
        read(task, tokenizer=PLAIN)


examples = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=20)


@given(examples, st.integers(1, 7))
def test_batches_hold_every_example_once(tokens: list[list[int]], size: int) -> None:
    data_ = TaskData(
        "text-classification", ("a",), (), tuple(Example(t, n) for n, t in enumerate(tokens)), None, PADDED
    )
    batches = data_.batches(data_.eval, size)
    lengths = [length for batch in batches for length in batch.inputs["attention_mask"].sum(1).tolist()]
    assert lengths == sorted(map(len, tokens))
    for batch in batches:
        assert 1 <= batch.items <= size
        for ids, mask, label in zip(*batch.inputs.values(), batch.labels.tolist(), strict=True):
            assert ids[mask.bool()].tolist() == tokens[label]
            assert not ids[~mask.bool()].any()
    assert sorted(label for batch in batches for label in batch.labels.tolist()) == list(range(len(tokens)))


@given(st.integers(1, 12), st.integers(1, 7), st.integers(0, 3))
def test_shuffled_batches(count: int, size: int, seed: int) -> None:
    train = tuple(Example([n + 1], n) for n in range(count))
    found = TaskData("text-classification", ("a",), train, (), None, PADDED)
    most = min(size, count)
    together = min(8, count // most)  # batches
    taken = [list(islice(found.shuffled(size, seed), together * count)) for _ in range(2)]
    drawn, again = ([label for batch in batches for label in batch.labels.tolist()] for batches in taken)
    assert drawn == again
    assert all(len(batch.labels) == most for batch in taken[0])
    assert np.bincount(drawn).tolist() == [together * most] * count


def test_shuffled_batches_waste_little_on_padding() -> None:
    train = tuple(Example([1] * (1 + n % 64), 0) for n in range(640))
    found = TaskData("text-classification", ("a",), train, (), None, PADDED)
    batches = list(islice(found.shuffled(16), 40))
    used = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    assert used / sum(batch.inputs["input_ids"].numel() for batch in batches) > 0.85
    widths = [batch.inputs["input_ids"].shape[1] for batch in batches[:8]]
    assert widths != sorted(widths)


def test_calibration_draws_by_seed(tmp_path: Path) -> None:
    train = tuple(Example([n + 1], n) for n in range(50))
    found = TaskData("text-classification", ("a",), train, (), None, PADDED)

    def labels(items: int, seed: int) -> list[int]:
        return [label for batch in found.calibration(items, 8, seed) for label in batch.labels.tolist()]

    assert labels(10, 0) == labels(10, 0) != labels(10, 1)
    assert len(set(labels(10, 0))) == 10
    assert sorted(labels(99, 0)) == list(range(50))


def test_a_bundles_held_out_data(tmp_path: Path) -> None:
    task = texts(tmp_path, [{"text": "good", "label": "good"}, {"text": "bad", "label": "bad"}], items=3)
    wanted = read(task)
    entry = TaskEntry(
        name="spam",
        kind="text-classification",
        classes=["bad", "good"],
        max_length=16,
        sparsity=0.5,
        dense=None,
        eval=EvalData(file="elsewhere", blake3="0" * 64, text="text", label="label", items=3),
    )
    (found,) = read_held_out(entry, task.eval, tiny_files.reader(TOKENIZER), 14, 8)
    (expected,) = (batch.arrays() for batch in wanted.batches(wanted.eval, 8))
    assert found[0].keys() == expected[0].keys()
    assert all((found[0][name] == expected[0][name]).all() for name in found[0])
    assert (found[1] == expected[1]).all()
    with pytest.raises(CompileError, match="names no held-out data"):
        read_held_out(msgspec.structs.replace(entry, eval=None), task.eval, tiny_files.reader(TOKENIZER), 14, 8)
    with pytest.raises(BundleFormatError, match="tokenizer: expected ids below 5, as the model has, found larger ones"):
        read_held_out(entry, task.eval, tiny_files.reader(TOKENIZER), 5, 8)


def test_the_task_file_reaches_the_reader(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    entries = tiny.tasks(tmp_path, "text", "tokens", "lm")
    parsed = task_file.from_dict({"model": "model", "tasks": entries}, tmp_path)
    for name, task in parsed.tasks.items():
        known = data.classes(name, task) if task.labelled else ()
        assert len(data.load(name, task, PLAIN, known, parsed.max_length_of(name)).train) > 0


@pytest.mark.parametrize("name", ["train[12].jsonl", "t*.jsonl", "a::b.jsonl", "data {x}.jsonl"])
def test_a_file_is_the_one_of_that_name(tmp_path: Path, name: str) -> None:
    for other in ("train1.jsonl", "t1.jsonl", "b.jsonl"):
        tiny.jsonl(tmp_path / other, [{"text": "a", "label": "STALE"}, {"text": "a", "label": "OLD"}])
    task = texts(tmp_path, []).model_copy(update={"train": tiny.jsonl(tmp_path / name, LABELLED)})
    assert data.classes("spam", task) == tuple(sorted({row["label"] for row in LABELLED}))


@pytest.mark.parametrize("labels", [["01", "02"], ["true", "false"], ["1.0", "2"], ["None", "NA"], ["00", "1e3"]])
def test_columns_of_csv_are_text(tmp_path: Path, labels: list[str]) -> None:
    task = texts(tmp_path, []).model_copy(update={"train": tmp_path / "train.csv"})
    task.train.write_text("text,label\n" + "".join(f"{n},{labels[n % 2]}\n" for n in range(12)))
    assert data.classes("spam", task) == tuple(sorted(labels))
    tiny.jsonl(task.eval, [{"text": "a", "label": labels[0]}])
    assert len(read(task).train) == 12


def test_an_index_that_pandas_wrote_is_a_column_like_others(tmp_path: Path) -> None:
    task = texts(tmp_path, []).model_copy(update={"train": tmp_path / "train.csv"})
    task.train.write_text(",text,label\n0,good,x\n1,bad,y\n")
    assert data.classes("spam", task) == ("x", "y")


@pytest.mark.parametrize("row", ["a", "a,", 'a,""'])
def test_refuses_a_row_of_csv_without_a_label(tmp_path: Path, row: str) -> None:
    task = texts(tmp_path, []).model_copy(update={"train": tmp_path / "train.csv"})
    task.train.write_text(f"text,label\ngood,x\nbad,y\n{row}\n")
    with pytest.raises(CompileError, match="row 3: expected a value for 'label', found none"):
        data.classes("spam", task)


@pytest.mark.parametrize("ending", ["zip", "eval", "gz", "py"])
def test_running_text_may_have_any_ending(tmp_path: Path, ending: str) -> None:
    paths = tiny.prose(tmp_path / f"train.{ending}", 50), tiny.prose(tmp_path / f"eval.{ending}", 50)
    plain = tiny.prose(tmp_path / "train.txt", 50), tiny.prose(tmp_path / "eval.txt", 50)
    found, expected = (read(spec("language-modeling", *each), 8, tokenizer=PLAIN) for each in (paths, plain))
    assert found.train == expected.train


def test_refuses_words_that_tokenise_to_nothing(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["the", "film", "ungood"], "tags": ["DET", "NOUN", "ADJ"]},
        {"tokens": ["\u3000"], "tags": ["ADJ"]},
    ]
    with pytest.raises(CompileError, match="row 2: expected words, found nothing to tokenise in"):
        read(words(tmp_path, rows))


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(1, 4000), st.integers(0, 5))
def test_calibration_stops_at_enough_tokens(lengths: list[int], tokens: int, seed: int) -> None:
    texts = tuple(Example([1] * length, 0) for length in lengths)
    found = TaskData("text-classification", ("a", "b"), texts, texts, None, PADDED)
    drawn = [int(batch.tokens.sum()) for batch in found.calibration(150, 1, seed, tokens) if batch.tokens is not None]
    total = sum(int(batch.tokens.sum()) for batch in found.calibration(150, 1, seed) if batch.tokens is not None)
    assert sum(drawn) >= min(tokens, total)
    assert sum(drawn) - max(drawn) < tokens


def test_calibration_of_few_tokens_reads_long_texts_too() -> None:
    texts = tuple(Example([1] * length, 0) for length in [4] * 500 + [60] * 500)
    found = TaskData("text-classification", ("a", "b"), texts, texts, None, PADDED)
    lengths = [int(batch.tokens.sum()) for batch in found.calibration(1000, 1, tokens=6400) if batch.tokens is not None]
    assert 0.3 < sum(length == 60 for length in lengths) / len(lengths) < 0.7


def warnings_of(task: TaskSpec, caplog: pytest.LogCaptureFixture) -> list[str]:
    read(task)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_labels_that_look_the_same_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"film {n}", "label": label} for n, label in enumerate(["y", "y ", "Y", "n"] * 3)]
    task = texts(tmp_path, rows)
    tiny.jsonl(task.eval, [{"text": "good", "label": "n"}])
    found = warnings_of(task, caplog)
    assert len(found) == 2
    for words in ("tasks.spam.train (", "'Y' and 'y' differ by blanks or case only", "'Y' and 'y ' differ"):
        assert any(words in line for line in found)


def test_few_training_rows_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": word, "label": label} for word, label in zip("abc", "xyx", strict=True)]
    task = texts(tmp_path, rows)
    tiny.jsonl(task.eval, [{"text": "the film", "label": "x"}])
    (found,) = warnings_of(task, caplog)
    assert "tasks.spam.train (" in found
    assert "3 examples teach a task little" in found


@pytest.mark.parametrize("split", ["eval", "validation"])
def test_held_out_rows_that_are_training_rows_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    numbers = ["one", "two", "good", "bad", "film", "the"]
    rows = [{"text": f"{a} {b}", "label": "x" if a == "one" else "y"} for a in numbers for b in numbers]
    task = texts(tmp_path, rows)
    tiny.jsonl(task.eval, [{"text": f"{a} film film", "label": "x"} for a in numbers])
    path = tiny.jsonl(tmp_path / "other.jsonl", rows[:4])
    (found,) = warnings_of(task.model_copy(update={split: path}), caplog)
    assert f"tasks.spam.{split} ({path}): 4 of 4 examples are training examples too" in found


def test_held_out_rows_that_choices_were_made_by_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = ["one", "two", "good", "bad", "film", "the"]
    rows = [{"text": f"{a} {b}", "label": "x" if a == "one" else "y"} for a in numbers for b in numbers]
    task = texts(tmp_path, rows)
    tiny.jsonl(task.eval, [{"text": f"{a} film film", "label": "x"} for a in numbers])
    (found,) = warnings_of(task.model_copy(update={"validation": task.eval}), caplog)
    assert f"tasks.spam.eval ({task.eval}): 6 of 6 examples are validation examples too" in found


def test_a_repeated_message_among_many_is_no_mistake(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbers = ["one", "two", "good", "bad", "film", "the"]
    rows = [{"text": f"{a} {b}", "label": a} for a in numbers for b in numbers]
    task = texts(tmp_path, rows)
    tiny.jsonl(task.eval, [*rows[:1], *({"text": f"{a} {b} film", "label": a} for a in numbers for b in numbers)])
    assert warnings_of(task, caplog) == []


@pytest.mark.parametrize(("own", "key"), [(None, "calibration.max_length"), (16, "tasks.spam.max_length")])
def test_texts_that_are_cut_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own: int | None, key: str
) -> None:
    rows = [{"text": " ".join(["film"] * words), "label": words % 2} for words in (*[3] * 34, *range(13, 19))]
    task = texts(tmp_path, rows).model_copy(update={"max_length": own})
    tiny.jsonl(task.eval, [{"text": "good", "label": 1}])
    (found,) = warnings_of(task, caplog)
    assert "tasks.spam.train (" in found
    assert "4 of 40 texts have more tokens than max_length 16: they are cut there" in found
    assert f"set {key} to 18, or" in found  # with 18, two are cut: one in twenty
    caplog.clear()
    read(task, 18)
    assert not caplog.records


def test_words_that_are_cut_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"tokens": ["film"] * (10 + n), "tags": ["XY"[n % 2]] * (10 + n)} for n in range(10)]
    task = words(tmp_path, rows)
    tiny.jsonl(task.eval, [{"tokens": ["good"], "tags": ["X"]}])
    (found,) = warnings_of(task, caplog)
    assert "5 of 10 texts have more tokens than max_length 16" in found
    assert "to 21, or" in found

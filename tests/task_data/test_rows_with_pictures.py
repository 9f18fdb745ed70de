"""Rows whose prompts have pictures: every form, and what is said about anything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas
import pyarrow
import pytest
from pyarrow import parquet
from test_completions import reader as text_reader

import tiny_pictures
from tiny_pictures import IMAGE, content, url
from weightpager.answers.kinds import IGNORED
from weightpager.bundle.files.entry import hash_file
from weightpager.compiler import data
from weightpager.compiler.data import TaskData
from weightpager.compiler.task_file.sections import TaskSpec
from weightpager.errors import CompileError
from weightpager.readers.picture_reader import PictureReader
from weightpager.task_data import held_out, row_pictures
from weightpager.task_data.completions import CompletionExample, CompletionReader

BEGIN, END = 2, 3
RED, GREEN, CAT, SNOW = 4, 5, 7, 12
PLACES = (IMAGE, IMAGE)
ANSWER = {"role": "assistant", "content": "cat"}
COLUMNS = ("prompt", "completion")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(content(number))
    return tmp_path / "data.jsonl"


def read(path: Path, *rows: Any, length: int = 12, template: str | None = None) -> tuple[CompletionExample, ...]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return CompletionReader(*COLUMNS, tiny_pictures.reader(template), length).read(path, "data")


def keys(*seeds: int) -> list[bytes]:
    own = tiny_pictures.picture_reader()
    return [own.read(tiny_pictures.noise(seed)).key for seed in seeds]


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def said(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("row", "prompt", "seeds"),
    [
        ({"image": "0.png", "prompt": "red"}, [BEGIN, *PLACES, RED], [0]),
        ({"image": url(1), "prompt": "red <image>"}, [BEGIN, RED, *PLACES], [1]),
        ({"images": ["2.png", "0.png"], "prompt": "red"}, [BEGIN, *PLACES, *PLACES, RED], [2, 0]),
        ({"images": ["2.png", url()], "prompt": "<image> red <image>"}, [BEGIN, *PLACES, RED, *PLACES], [2, 0]),
        ({"image": {"path": "1.png", "bytes": None}, "prompt": "red"}, [BEGIN, *PLACES, RED], [1]),
        ({"image": None, "images": [], "prompt": "red"}, [BEGIN, RED], []),
        ({"image": "", "prompt": "red"}, [BEGIN, RED], []),
    ],
)
def test_a_row_names_its_pictures(path: Path, row: dict[str, Any], prompt: list[int], seeds: list[int]) -> None:
    (found,) = read(path, {**row, "completion": "cat"})
    assert list(found.prompt) == prompt
    assert list(found.tokens) == [*prompt, CAT, END]
    assert found.label == [IGNORED] * len(prompt) + [CAT, END]
    assert [picture.key for picture in found.pictures] == keys(*seeds)


@pytest.mark.parametrize(
    ("content", "beside"),
    [
        ([{"type": "image"}, said("red"), {"type": "image"}], {"images": ["1.png", "0.png"]}),
        ([{"type": "image", "image": "1.png"}, said("red"), {"type": "image"}], {"image": "0.png"}),
        ([{"type": "image", "path": "1.png"}, said("red"), {"type": "image", "url": url()}], {}),
        ([{"type": "image_url", "image_url": {"url": url(1)}}, said("red"), {"type": "image", "image": "0.png"}], {}),
    ],
)
@pytest.mark.parametrize("in_one", [True, False])
def test_messages_have_parts(path: Path, content: list[Any], beside: dict[str, Any], in_one: bool) -> None:
    talk = [user(*content)]
    row = {"messages": [*talk, ANSWER]} if in_one else {"prompt": talk, "completion": [ANSWER]}
    (found,) = read(path, {**row, **beside}, template=tiny_pictures.PARTS)
    assert found.prompt == (*PLACES, RED, *PLACES, SNOW)
    assert [picture.key for picture in found.pictures] == keys(1, 0)
    assert found.chat


def test_pictures_beside_messages_of_texts_stand_in_front(path: Path) -> None:
    talk = [{"role": "user", "content": "red"}, ANSWER]
    (found,) = read(path, {"messages": talk, "image": "1.png"}, template=tiny_pictures.PARTS)
    assert found.prompt == (*PLACES, RED, SNOW)


def test_parquet_holds_contents_of_files(tmp_path: Path) -> None:
    rows = [
        {"image": {"bytes": content(1), "path": "a.png"}, "prompt": "red", "completion": "cat"},
        {"image": {"bytes": None, "path": "0.png"}, "prompt": "red", "completion": "cat"},
        {"image": None, "prompt": "red", "completion": "cat"},
    ]
    (tmp_path / "0.png").write_bytes(content(0))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    found = CompletionReader(*COLUMNS, tiny_pictures.reader(), 8).read(tmp_path / "data.parquet", "data")
    assert [[picture.key for picture in each.pictures] for each in found] == [keys(1), keys(0), []]
    several = {"images": [{"bytes": content(1), "path": None}, {"bytes": content(2), "path": None}]}
    talk = [user({"type": "image", "text": None}, {"type": "text", "text": "red"}, {"type": "image", "text": None})]
    rows = [{**several, "prompt": talk, "completion": "cat"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "talk.parquet")
    own = tiny_pictures.reader(tiny_pictures.PARTS)
    (talked,) = CompletionReader(*COLUMNS, own, 8).read(tmp_path / "talk.parquet", "data")
    assert [picture.key for picture in talked.pictures] == keys(1, 2)


def test_tables_of_texts_name_files(path: Path) -> None:
    rows = pandas.DataFrame({"image": ["0.png", ""], "prompt": ["red", "red"], "completion": ["cat", "cat"]})
    rows.to_csv(path.with_suffix(".csv"), index=False)
    found = CompletionReader(*COLUMNS, tiny_pictures.reader(), 8).read(path.with_suffix(".csv"), "data")
    assert [len(each.pictures) for each in found] == [1, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "absent.png"}, "row 1: picture 1 of 1: expected an image, found no file at"),
        ({"image": "a\0b.png"}, "row 1: picture 1 of 1: expected an image, found no file at"),
        ({"images": ["0.png", "data.jsonl"]}, "row 1: picture 2 of 2: expected an image (BMP"),
        ({"image": "https://example.org/a.png"}, "nothing is fetched from an address"),
        ({"image": "data:text/html;base64,AA"}, "expected a picture as a data URL"),
        ({"image": 5}, "picture 1 of 1: expected a picture: a path from the data's folder, a data URL"),
        ({"image": {"bytes": "AA"}}, "expected an image, found no file at"),
        ({"images": [None]}, "picture 1 of 1: expected a picture: a path"),
        ({"images": "0.png"}, "expected 'images' to be a list of pictures, found '0.png'"),
        ({"image": "0.png", "images": ["1.png"]}, "expected 'image' or 'images', found both"),
        ({"prompt": "<image> red <image>", "image": "0.png"}, "expected as many <image> in the text as pictures, 1"),
        ({"prompt": "<image>"}, "expected as many <image> in the text as pictures, 0, found 1; give a picture"),
        ({"completion": "cat <image>"}, "expected a completion of words, found '<image>'"),
        ({"images": ["absent.png"] * 6}, "expected at most 5 pictures of 2 tokens each, as there is room for, found 6"),
        ({"images": ["0.png"] * 5, "prompt": "red red"}, "expected a prompt of fewer tokens than max_length 12"),
    ],
)
def test_other_rows_are_refused(path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError) as refused:
        read(path, {"prompt": "red", "completion": "cat", **row})
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [user({"type": "image"}, said("red")), ANSWER]}, "parts that name none, 1, found 0"),
        ({"messages": [user({"type": "image"}), ANSWER], "images": ["0.png", "1.png"]}, "name none, 1, found 2"),
        ({"messages": [user(said("red")), {**ANSWER, "content": [{"type": "image"}]}]}, "expected an answer that is"),
        ({"messages": [user(said("<image>"), {"type": "image", "path": "0.png"}), ANSWER]}, "pictures, 1, or none"),
    ],
)
def test_other_conversations_are_refused(path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(CompileError) as refused:
        read(path, row, template=tiny_pictures.PARTS)
    assert message in str(refused.value)


def test_a_model_of_texts_reads_rows_as_ever(path: Path) -> None:
    rows = [{"image": 5, "images": "absent", "prompt": "red", "completion": "cat"}]
    path.write_text(json.dumps(rows[0]))
    (found,) = CompletionReader(*COLUMNS, text_reader(), 8).read(path, "data")
    assert (found.prompt, found.pictures) == ((BEGIN, RED), ())
    path.write_text(json.dumps({"messages": [user({"type": "image", "image": "0.png"}), ANSWER]}))
    with pytest.raises(CompileError, match="expected messages with a role and a content that is text"):
        CompletionReader(*COLUMNS, text_reader(), 8).read(path, "data")


def load(folder: Path, train: list[Any], held_out: list[Any]) -> TaskData:
    files = {"train": folder / "train.jsonl", "eval": folder / "eval.jsonl"}
    for file, rows in zip(files.values(), (train, held_out), strict=True):
        file.write_text("".join(json.dumps({"completion": "cat", **row}) + "\n" for row in rows))
    own = tiny_pictures.tokenizer()
    return data.load("job", TaskSpec(kind="text-generation", **files), own, (), 12, tiny_pictures.picture_reader())


def test_batches_bring_pixels_in_the_order_of_their_places(path: Path) -> None:
    rows = [
        {"prompt": "red green red", "images": ["1.png", "2.png"]},
        {"prompt": "red"},
        {"prompt": "red", "image": "0.png"},
    ]
    found = load(path.parent, rows, rows)
    own = tiny_pictures.picture_reader()
    wanted = np.stack([own.read(tiny_pictures.noise(seed)).pixels for seed in (0, 1, 2)])
    (batch,) = found.held_out()
    assert batch.inputs["input_ids"].tolist() == [
        [0] * 6 + [BEGIN, RED],
        [0] * 4 + [BEGIN, *PLACES, RED],
        [BEGIN, *PLACES, *PLACES, RED, GREEN, RED],
    ]
    assert np.array_equal(batch.inputs["pixel_values"].numpy(), wanted)
    (learnt,) = found.batches(found.train, 8)
    assert np.array_equal(learnt.inputs["pixel_values"].numpy(), wanted)
    assert (learnt.inputs["input_ids"] == IMAGE).sum() == 3 * len(PLACES)
    (alone,) = found.batches(found.train[1:2], 8)
    assert set(alone.inputs) == {"input_ids", "attention_mask"}


def test_a_picture_is_read_when_its_batch_is_asked_for(path: Path) -> None:
    rows = [{"prompt": "red", "image": "0.png"}]
    batches = load(path.parent, rows, rows).held_out()
    (path.parent / "0.png").unlink()
    with pytest.raises(CompileError, match="pictures: expected an image, found no file at"):
        batches[0]


def test_a_file_that_many_rows_name_is_decoded_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = Mock(wraps=PictureReader.read)
    monkeypatch.setattr(PictureReader, "read", lambda *given: decoded(*given))
    found = read(path, *[{"prompt": "red", "image": "0.png", "completion": "cat"}] * 3)
    decoded.assert_called_once()
    assert [example.pictures[0].key for example in found] == keys(0) * 3


def test_the_same_words_about_another_picture_were_not_seen(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "red", "image": f"{number}.png"} for number in range(3)]
    load(path.parent, rows[:2], rows[2:])
    assert "training examples too" not in caplog.text
    load(path.parent, rows, rows[2:])
    assert "1 of 1 examples are training examples too" in caplog.text


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "red", "image": "0.png"},
        {"prompt": "red", "images": ["0.png"]},
        {"prompt": [user({"type": "image", "image": "0.png"})]},
        {"messages": [user({"type": "image", "image": "0.png"}), ANSWER]},
    ],
)
def test_held_out_data_is_known_by_its_pictures_too(path: Path, row: dict[str, Any]) -> None:
    def known() -> str:
        return held_out.fingerprint(path, "data", "text-generation", COLUMNS)

    other = {"messages": [{"role": "tool", "content": "red"}]}
    path.write_text(f"{json.dumps(other)}\n{json.dumps(row)}\nno row")
    first = known()
    (path.parent / "0.png").write_bytes(content(1))
    assert known() != first
    (path.parent / "0.png").write_bytes(content(0))
    assert known() == first


def test_a_model_of_texts_looks_at_no_picture_of_its_rows(path: Path) -> None:
    path.write_text(json.dumps({"prompt": "red", "completion": "cat", "image": "0.png"}))
    assert held_out.fingerprint(path, "data", "text-generation", COLUMNS) != hash_file(path).blake3
    alone = held_out.fingerprint(path, "data", "text-generation", COLUMNS, among_words=False)
    assert alone == hash_file(path).blake3


@pytest.mark.parametrize("text", ['{"\\u0069mage": "0.png"}', '{"prompt": "' + "x" * 2**20 + '", "image": "0.png"}'])
def test_columns_of_pictures_are_found_however_they_are_written(path: Path, text: str) -> None:
    path.write_text(text)
    assert held_out.fingerprint(path, "data", "text-generation", COLUMNS) != hash_file(path).blake3


def test_rows_that_say_nothing_of_pictures_are_not_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(json.dumps({"prompt": "red", "completion": "cat"}))
    monkeypatch.setattr(row_pictures, "_files", lambda _path: pytest.fail("they were read"))
    assert held_out.fingerprint(path, "data", "text-generation", COLUMNS) == hash_file(path).blake3


def test_texts_are_known_by_their_file_alone(path: Path) -> None:
    path.write_text(json.dumps({"prompt": "red", "completion": "cat", "image": "absent.png"}))
    found = [held_out.fingerprint(path, "data", kind, COLUMNS) for kind in ("text-generation", "language-modeling")]
    assert found[0] == found[1]

"""Files of rows, format by format; what task data makes of them is tested with the compiler's splits."""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from weightpager.errors import CompileError
from weightpager.task_data.row_files import json_rows, read_rows, separated_rows

ROWS = [{"text": "a\nb", "label": 1}, {"text": "é", "label": None}]


@pytest.mark.parametrize(
    "content",
    [
        "".join(json.dumps(row) + "\n" for row in ROWS),
        "\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
        "\ufeff" + "\n".join(map(json.dumps, ROWS)),
        json.dumps(ROWS),
        "  " + json.dumps(ROWS, indent=2),
        "".join(json.dumps(row, indent=1) for row in ROWS),
    ],
)
def test_forms_of_json_agree(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content, encoding="utf-8")
    assert list(json_rows(path)) == ROWS


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"a": 1}, 7]', "row 2: expected a JSON object, found 7"),
        ('{"a": "\\ud83d\\ude00"}\n{"a": "\\ud83d"}', "row 2: expected Unicode text, found half of a surrogate pair"),
        ("[" * 100_000, "values inside too many others"),
        ('{"a": 1}\n' + '{"a":' * 100_000, "row 2: expected a JSON object"),
        ("7", "row 1: expected a JSON object, found 7"),
        ('{"a": 1, "b": 2, "a": 3}', "expected fields of different names, found 'a' twice"),
        ('{"a": 1}\n{"a": {"b": 1, "b": 2}}', "row 2: expected fields of different names, found 'b' twice"),
        ('[{"a": 1, "a": 2}]', "expected fields of different names, found 'a' twice"),
        ("nonsense", "Expecting value"),
    ],
)
def test_what_is_wrong_with_json_is_said(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CompileError, match=f"here: cannot be read as json: .*{expected}") as refused:
        read_rows(path, "here", "a")
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("start", range(800, 1_008, 26))
def test_json_of_any_depth_is_read_or_refused(tmp_path: Path, start: int) -> None:
    path = tmp_path / "rows.jsonl"
    for depth in range(start, start + 26):
        path.write_text('{"a": "\\u0041", "b": ' + "[" * depth + "]" * depth + "}", encoding="utf-8")
        with suppress(CompileError):
            assert read_rows(path, "here", "a")[0]["a"] == "A"


def test_rows_behind_the_last_one_that_is_wanted_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\nnonsense')
    assert read_rows(path, "here", "a", most=2) == [{"a": 1}, {"a": 2}]


def test_texts_that_look_like_times_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "2024-05-01"}\n{"a": "12:30"}')
    assert read_rows(path, "here", "a") == [{"a": "2024-05-01"}, {"a": "12:30"}]


@settings(max_examples=40)
@given(st.lists(st.fixed_dictionaries({name: st.text(st.characters(codec="utf-8")) for name in "ab"}), min_size=1))
def test_what_was_written_as_json_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(json_rows(path)) == rows


_CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"))


@settings(max_examples=40)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys("ab", _CELLS)), min_size=1), st.sampled_from(",\t"))
def test_what_was_written_in_columns_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], separator: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a", "b"], delimiter=separator, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    assert list(separated_rows(path, separator)) == rows


def test_a_column_may_hold_long_texts(tmp_path: Path) -> None:
    path, before = tmp_path / "rows.csv", csv.field_size_limit()
    path.write_text(f"\ufefftext,label\n{'long ' * 100_000},x\n\nshort,y\n", encoding="utf-8")
    assert [(len(row["text"]), row["label"]) for row in separated_rows(path, ",")] == [(500_000, "x"), (5, "y")]
    assert csv.field_size_limit() == before


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(CompileError, match="expected columns of different names, found 'text' twice"):
        read_rows(tmp_path / "rows.parquet", "here", "text")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,text\na,b\n", "expected columns of different names, found 'text' twice"),
        ('text,label\n"a"b,x\n', "',' expected after '\"'"),
        ("text,label\na,b,c\n", "row 1: expected a value for each column, found more; put quotes around texts with"),
    ],
)
def test_what_is_wrong_with_columns_is_said(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(CompileError, match=f"here: cannot be read as csv: {expected}"):
        read_rows(path, "here", "text")


@pytest.mark.parametrize(
    ("number", "kind", "found"),
    [
        (10**8, pyarrow.date32(), "date value out of range"),
        (2**60, pyarrow.timestamp("us"), "date value out of range"),
        (0, pyarrow.timestamp("us", tz="Nowhere/City"), "Nowhere/City"),
    ],
)
def test_a_time_that_python_cannot_hold_is_refused(
    tmp_path: Path, number: int, kind: pyarrow.DataType, found: str
) -> None:
    path, whole = tmp_path / "rows.parquet", pyarrow.int32() if kind == pyarrow.date32() else pyarrow.int64()
    times = pyarrow.array([number], whole).cast(kind)
    parquet.write_table(pyarrow.table({"text": ["a"], "at": times}), path)
    with pytest.raises(CompileError, match=f"here: cannot be read as parquet: expected times of .*{found}"):
        read_rows(path, "here", "text")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_running_text_is_read_without_a_byte_order_mark(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(f"{mark}red\ngreen", encoding="utf-8")
    assert read_rows(path, "here", "text", running_text=True) == [{"text": "red\ngreen"}]

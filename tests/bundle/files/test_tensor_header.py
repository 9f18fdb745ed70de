"""Headers of safetensors files: what safetensors refuses is refused, and what it takes is taken as it takes it."""

from __future__ import annotations

import json
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from weightpager.bundle.files.tensor_file import parse_header

SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8,
    "U64": 8, "F64": 8,
}  # fmt: skip

STRICTER = ("stated twice", "unknown field", "which counts nothing", "of dtype")
"""Reasons to refuse what safetensors takes: it ignores fields that it doesn't know, and takes a name's last value."""


def file(text: str | bytes, data: int, *, length: int | None = None) -> bytes:
    """A file with this header."""
    header = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(data)


def tensor(dtype: str = "U8", shape: str = "[4]", offsets: str = "[0,4]") -> str:
    return f'"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}'


def ours(content: bytes) -> dict[str, tuple[tuple[int, ...], int]] | str:
    """Shape and place of each tensor, or why there are none."""
    start = content[: 8 + min(int.from_bytes(content[:8], "little"), 100_000_000)]
    try:
        header, places = parse_header(start, len(content))
    except ValueError as error:
        return str(error)
    return {name: (stated.shape, places[name]) for name, stated in header.items()}


def theirs(content: bytes) -> dict[str, tuple[tuple[int, ...], int]] | None:
    """The same, read by safetensors; None if it refuses the file."""
    with tempfile.NamedTemporaryFile() as written:
        written.write(content)
        written.flush()
        try:
            with safe_open(written.name, framework="np") as opened:
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
    length = int.from_bytes(content[:8], "little")
    stated = json.loads(content[8 : 8 + length])
    return {name: (shape, 8 + length + stated[name]["data_offsets"][0]) for name, shape in shapes.items()}


def compare(content: bytes) -> None:
    mine, wanted = ours(content), theirs(content)
    if wanted is None:
        assert isinstance(mine, str), "taken, and safetensors refuses it"
    elif isinstance(mine, str):
        assert any(reason in mine for reason in STRICTER), mine
    else:
        assert mine == wanted


@st.composite
def files(draw: st.DrawFn) -> tuple[str, int]:
    """A right header, and how many bytes follow it."""
    end, entries = 0, {}
    for name in draw(st.lists(st.sampled_from(["a", "b", "ä", "", "\\", "long" * 9]), unique=True, max_size=4)):
        dtype = draw(st.sampled_from(sorted(SIZES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = SIZES[dtype] * int(np.prod(shape, dtype=np.int64))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    names = draw(st.permutations(list(entries)))
    whole: dict[str, Any] = {name: entries[name] for name in names}
    if draw(st.booleans()):
        whole["__metadata__"] = draw(st.none() | st.dictionaries(st.text("ab", max_size=2), st.text(max_size=3)))
    return json.dumps(whole, ensure_ascii=draw(st.booleans())) + " " * draw(st.integers(0, 9)), end


PIECES = st.sampled_from(
    [
        *"{}[]\",:0123456789-+.eE \n\t\0\x01\x7f/\\", "-0", "1.0", "1e0", "null", "true", "NaN", "Infinity", "1e999",
        "01", "18446744073709551616", "18446744073709551615", "9223372036854775808", "4294967296", "0,", "1,", '"x":1,',
        '"__metadata__":{},', '"__metadata__":null,', '"dtype":"U8",', '"shape":[],', '"data_offsets":[0,0],',
        '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},', "\\ud800", "\\u0000", "\\x", "\ud800", "\ufeff",
        "F8_E5M2", "F4", "C64", "u8", "[" * 200, "BOOL", "I64", "\\u005f", "//", "'",
    ]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(files(), st.data())
def test_changed_files_are_judged_as_safetensors_does(made: tuple[str, int], data: st.DataObject) -> None:
    text, size = made
    compare(file(text, size))
    assert not isinstance(ours(file(text, size)), str)
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        at, cut = data.draw(st.integers(0, len(text)), "at"), data.draw(st.integers(0, 3), "cut")
        text = text[:at] + data.draw(st.just("") | PIECES, "piece") + text[at + cut :]
    compare(file(text, size))
    compare(file(text, max(0, size + data.draw(st.integers(-2, 2), "more"))))


@settings(max_examples=100, deadline=None)
@given(files(), st.data())
def test_changed_bytes_are_judged_as_safetensors_does(made: tuple[str, int], data: st.DataObject) -> None:
    content = bytearray(file(*made))
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        content[data.draw(st.integers(0, len(content) - 1), "at")] = data.draw(st.integers(0, 255), "byte")
    compare(bytes(content))
    compare(bytes(content[: data.draw(st.integers(0, len(content)), "end")]))


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("{}", 0),
        ("{} \n\t\r", 0),
        ('{"__metadata__":null}', 0),
        ('{"__metadata__":{"a":"b"}}', 0),
        (f'{{"a":{{{tensor()}}}}}', 4),
        (f'{{"b":{{{tensor(offsets="[4,8]")}}},"a":{{{tensor()}}}}}', 8),
        (f'{{"b":{{{tensor()}}},"a":{{{tensor(shape="[0]", offsets="[0,0]")}}}}}', 4),
        (f'{{"a":{{{tensor(shape="[0,18446744073709551615]", offsets="[0,0]")}}}}}', 0),
        (f'{{"a":{{{tensor("F32", "[]")}}}}}', 4),
    ],
)
def test_what_safetensors_takes_is_taken(header: str, size: int) -> None:
    assert theirs(file(header, size)) == ours(file(header, size))
    assert theirs(file(header, size)) is not None


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("", 0),
        ("[]", 0),
        ("null", 0),
        ("{}{}", 0),
        ("\ufeff{}", 0),
        (b"\xff\xfe{\0}\0", 0),
        (b'{"\xff":' + f"{{{tensor()}}}}}".encode(), 4),
        ("{}", 1),
        ('{"__metadata__":{"a":1}}', 0),
        ('{"__metadata__":{"a":null}}', 0),
        ('{"__metadata__":[]}', 0),
        (f'{{"__metadata__":{{{tensor()}}}}}', 4),
        (f'{{"\\ud800":{{{tensor()}}}}}', 4),
        (f'{{"a":{{{tensor()}}}}}', 3),
        (f'{{"a":{{{tensor()}}}}}', 5),
        (f'{{"a":{{{tensor(offsets="[1,5]")}}}}}', 5),
        (f'{{"a":{{{tensor(offsets="[4,0]")}}}}}', 4),
        (f'{{"a":{{{tensor(offsets="[0,4,4]")}}}}}', 4),
        (f'{{"a":{{{tensor(offsets="[0]")}}}}}', 4),
        (f'{{"a":{{{tensor(offsets="[-0,4]")}}}}}', 4),
        (f'{{"a":{{{tensor(offsets="[0.0,4]")}}}}}', 4),
        (f'{{"a":{{{tensor(offsets="[false,4]")}}}}}', 4),
        (f'{{"a":{{{tensor(shape="[-2,-2]")}}}}}', 4),
        (f'{{"a":{{{tensor(shape="[4.0]")}}}}}', 4),
        (f'{{"a":{{{tensor(shape="[NaN]")}}}}}', 4),
        (f'{{"a":{{{tensor(shape="4")}}}}}', 4),
        (f'{{"a":{{{tensor(shape="[5]")}}}}}', 4),
        (f'{{"a":{{{tensor(shape="[18446744073709551616,0]", offsets="[0,0]")}}}}}', 0),
        (f'{{"a":{{{tensor(shape="[4294967296,4294967296,0]", offsets="[0,0]")}}}}}', 0),
        (f'{{"a":{{{tensor("u8")}}}}}', 4),
        (f'{{"a":{{{tensor("nonsense")}}}}}', 4),
        (f'{{"a":{{{tensor()}}},"b":{{{tensor()}}}}}', 4),
        (f'{{"a":{{{tensor()}}},"b":{{{tensor(offsets="[5,9]")}}}}}', 9),
        (f'{{"a":{{{tensor()},"dtype":"U8"}}}}', 4),
        ('{"a":{"dtype":"U8","shape":[4]}}', 4),
        ('{"a":' + "[" * 100_000, 0),
    ],
)
def test_what_safetensors_refuses_is_refused(header: str | bytes, size: int) -> None:
    assert theirs(file(header, size)) is None
    assert isinstance(ours(file(header, size)), str)


@pytest.mark.parametrize("header", [f'{{"a":{{{tensor()}}},"a":{{{tensor()}}}}}', f'{{"a":{{{tensor()},"more":1}}}}'])
def test_what_readers_could_differ_about_is_refused(header: str) -> None:
    assert theirs(file(header, 4)) is not None
    assert isinstance(ours(file(header, 4)), str)


@pytest.mark.parametrize("length", [0, 1, 3, 2**32, 2**63, 2**64 - 1, 100_000_001])
def test_a_length_that_is_not_the_headers_is_refused(length: int) -> None:
    content = file("{}", 0, length=length)
    assert theirs(content) is None
    assert isinstance(ours(content), str)

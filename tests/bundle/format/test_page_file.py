import json
from io import BytesIO
from pathlib import Path

import pytest
from blake3 import blake3
from safetensors.numpy import load

from weightpager.bundle.format import page_file
from weightpager.errors import BundleFormatError

PAGES = [bytes([number]) * 4096 for number in range(3)]


def written() -> bytes:
    file = BytesIO()
    page_file.write(file, PAGES, 3, 4096)
    return file.getvalue()


def test_golden_bytes() -> None:
    content = written()
    assert content[:8] == (4096 - 8).to_bytes(8, "little")
    assert json.loads(content[8:4096]) == {"pages": {"dtype": "U8", "shape": [3, 4096], "data_offsets": [0, 3 * 4096]}}
    assert content[4096:] == b"".join(PAGES)
    assert blake3(content).hexdigest() == "0bc00a4f8f51820761d1e01bba5d4e5b16a6a5affcab42a0811a4e1e19415852"


def test_it_is_an_ordinary_safetensors_file() -> None:
    tensors = load(written())
    assert {name: array.shape for name, array in tensors.items()} == {"pages": (3, 4096)}
    assert [row.tobytes() for row in tensors["pages"]] == PAGES


def test_check_gives_the_offset_of_the_first_page(tmp_path: Path) -> None:
    path = tmp_path / "pages-0000.safetensors"
    path.write_bytes(written())
    assert page_file.check(path, 3, 4096) == 4096


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda content: content[:-1], "size"),
        (lambda content: content + b"\0", "size"),
        (lambda content: content[:100] + b"!" + content[101:], "header"),
        (lambda content: bytes([content[0] ^ 1]) + content[1:], "header"),
        (lambda content: b"", "size"),
    ],
)
def test_a_file_that_is_not_exactly_as_listed_is_refused(tmp_path: Path, change, field) -> None:
    path = tmp_path / "pages-0000.safetensors"
    path.write_bytes(change(written()))
    with pytest.raises(BundleFormatError, match=rf"pages-0000.safetensors: {field}: expected"):
        page_file.check(path, 3, 4096)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleFormatError, match="pages-0007.safetensors: file: expected a readable file"):
        page_file.check(tmp_path / "pages-0007.safetensors", 1, 4096)

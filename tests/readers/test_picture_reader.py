"""Pictures among a prompt's words: fine, damaged, hostile, too many, or none."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_image_reader import content, png
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaProcessor,
    SiglipImageProcessorPil,
    ViTImageProcessorPil,
)
from transformers.image_processing_utils import BaseImageProcessor

import tiny
from weightpager.bundle.format.manifest import Pictures
from weightpager.errors import ImageError
from weightpager.readers.picture import Picture
from weightpager.readers.picture_reader import PictureReader, content_of, processor_settings

PICTURES = Pictures(blocks="shared", layers=1, token="<image>", token_id=7, tokens=4, width=8)

PROCESSORS: dict[str, Callable[[], BaseImageProcessor]] = {
    "clip": partial(CLIPImageProcessorPil, size={"shortest_edge": 18}, crop_size={"height": 18, "width": 18}),
    "cut out": partial(CLIPImageProcessorPil, size={"shortest_edge": 21}, crop_size={"height": 16, "width": 12}),
    "siglip": partial(SiglipImageProcessorPil, size={"height": 12, "width": 20}),
    "dinov2": partial(BitImageProcessorPil, size={"shortest_edge": 20}, crop_size={"height": 18, "width": 18}),
    "squared": partial(
        LlavaImageProcessorPil, do_pad=True, size={"shortest_edge": 15}, crop_size={"height": 15, "width": 15}
    ),
    "not squared": partial(LlavaImageProcessorPil, size={"shortest_edge": 15}, crop_size={"height": 15, "width": 15}),
    "vit": partial(ViTImageProcessorPil, size={"height": 9, "width": 7}),
}


def reader(processor: BaseImageProcessor | None = None) -> PictureReader:
    return PictureReader.of((processor or PROCESSORS["clip"]()).to_dict(), PICTURES)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


def url(file: bytes, media: str = "image/png") -> str:
    return f"data:{media};base64,{base64.b64encode(file).decode()}"


@pytest.mark.parametrize("name", PROCESSORS)
@given(height=st.integers(2, 40), width=st.integers(2, 40), seed=st.integers(0, 99))
def test_pixels_are_those_of_transformers_bit_for_bit(name: str, height: int, width: int, seed: int) -> None:
    processor, image = PROCESSORS[name](), noise(height, width, seed)
    wanted = processor(images=image, return_tensors="np")["pixel_values"][0]
    own = reader(processor)
    found = own.read(image).pixels
    assert found.shape == own.shape
    assert np.array_equal(found, wanted.astype(np.float32))


@pytest.mark.parametrize("mode", ["1", "CMYK", "L", "LA", "P", "RGB", "RGBA", "YCbCr"])
@pytest.mark.parametrize("size", [(33, 17), (400, 300)])
def test_modes_are_read_as_transformers_reads_files(mode: str, size: tuple[int, int], tmp_path: Path) -> None:
    image = noise(*size).convert(mode)
    form = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image.save(tmp_path / f"a.{form}")
    wanted = PROCESSORS["clip"]()(images=str(tmp_path / f"a.{form}"), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(reader().read(tmp_path / f"a.{form}").pixels, wanted.astype(np.float32))


@pytest.mark.parametrize("mode", ["LA", "P", "RGB", "RGBA"])
def test_transparency_is_left_out_whatever_the_version_of_transformers(mode: str) -> None:
    image = noise(30, 20).convert(mode)
    hidden = image.copy()
    if mode in ("LA", "RGBA"):
        hidden.putalpha(Image.fromarray(np.arange(600, dtype=np.uint8).reshape(30, 20)))
    else:
        hidden.info["transparency"] = 3 if mode == "P" else (3, 4, 5)
    assert reader().read(content(hidden)).key == reader().read(content(image)).key


def test_pixels_need_no_torch(tmp_path: Path) -> None:
    noise(30, 20).save(tmp_path / "a.png")
    settings = json.loads(PROCESSORS["siglip"]().to_json_string())
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
from weightpager.bundle.format.manifest import Pictures
from weightpager.readers.picture_reader import PictureReader
pictures = Pictures(blocks="shared", layers=1, token="<image>", token_id=7, tokens=4, width=8)
picture = PictureReader.of({settings}, pictures).read({str(tmp_path / "a.png")!r})
print(picture.key.hex(), picture.pixels.tobytes().hex())
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    ours = reader(PROCESSORS["siglip"]()).read(tmp_path / "a.png")
    assert found == [ours.key.hex(), ours.pixels.tobytes().hex()]


def test_a_picture_is_known_by_its_pixels_and_the_processor(tmp_path: Path) -> None:
    image, own = noise(30, 20), reader()
    image.save(tmp_path / "a.png")
    sources: list[Any] = [image, np.array(image), tmp_path / "a.png", str(tmp_path / "a.png"), content(image)]
    sources += [url(content(image)), url(content(image, "WEBP", lossless=True), "image/webp")]
    keys = {own.read(source).key for source in sources}
    assert len(keys) == 1
    others = {own.read(noise(30, 20, 1)).key, reader(PROCESSORS["dinov2"]()).read(image).key}
    reshaped = Image.fromarray(np.array(image).reshape(20, 30, 3))
    assert len(keys | others | {own.read(reshaped).key}) == 4


def test_a_key_is_the_same_however_many_rows_are_hashed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reader().read(noise(31, 20)).key
    monkeypatch.setattr("weightpager.readers.picture_reader._AT_ONCE", 65)
    assert reader().read(noise(31, 20)).key == whole


@given(st.binary(max_size=200), st.integers(0, 150))
def test_any_bytes_give_a_picture_or_an_error(junk: bytes, place: int) -> None:
    own, whole = reader(), content(Image.new("RGB", (8, 8), "red"))
    for damaged in (junk, whole[:place] + junk + whole[place + len(junk) :]):
        for source in (damaged, url(damaged)):
            with suppress(ImageError):
                assert own.read(source).pixels.shape == own.shape


@given(st.text(max_size=60))
def test_any_text_is_a_path_or_an_error(text: str) -> None:
    for source in (f"data:{text}", f"data:image/png;base64,{text}", f"https://{text}"):
        with pytest.raises(ImageError):
            reader().read(source)


def test_settings_are_plain_whatever_transformers_holds_them_in() -> None:
    settings = reader().settings
    assert json.loads(json.dumps(settings)) == settings
    again = PictureReader.of(settings, PICTURES)
    assert again.read(noise(30, 20)).key == reader().read(noise(30, 20)).key


def test_pixels_are_found_once_they_are_asked_for() -> None:
    picture = reader().read(noise(30, 20))
    assert picture.pixels is picture.pixels


def test_an_image_is_let_go_with_its_pixels_there() -> None:
    image, pixels = noise(30, 20), np.zeros((3, 6, 6), np.float32)
    held = weakref.ref(image)
    picture = Picture(b"", partial(lambda _: pixels, image), 1)
    del image
    assert held() is not None
    assert picture.pixels is picture.pixels is pixels
    assert held() is None


def test_a_large_picture_is_not_kept() -> None:
    picture = reader().read(noise(600, 400))
    held = picture._process.__closure__
    assert held is not None
    assert [cell.cell_contents.nbytes for cell in held] == [picture.pixels.nbytes]


def animated(form: str) -> bytes:
    return content(noise(8, 8), form, save_all=True, append_images=[noise(8, 8, 1)])


def test_a_photograph_with_more_behind_it_is_read() -> None:
    assert reader().read(animated("MPO")).pixels.shape == (3, 18, 18)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (png(10_000, 10_000), "expected at most 67108864 pixels"),
        (png(100_000, 100_000), "expected at most 67108864 pixels"),
        (png(9000, 9000), "expected at most 67108864 pixels, found 9000 × 9000"),
        (png(1, 1000), "expected sides of at most 1 : 32, found 1 × 1000"),
        (png(16, 16), "found a damaged one"),
        (content(noise(32, 32))[:900], "found a damaged one"),
        (png(0, 16), "without pixels"),
        (np.zeros((0, 16, 3), np.uint8), "at least 1 pixel, found 16 × 0"),
        (np.zeros((8, 8, 4), np.uint8), r"expected an array of uint8 \[height, width, 3\]"),
        (np.zeros((8, 8, 3), np.float32), "found float32"),
        (content(Image.new("I;16", (8, 8), 700)), "expected 8 bits a channel, found mode I"),
        (Image.new("F", (8, 8)), "expected 8 bits a channel, found mode F"),
        (Image.new("LAB", (8, 8)), "expected a picture of a mode among .*, found LAB"),
        (animated("PNG"), "expected a picture of one frame, found an animated one of 2"),
        (animated("WEBP"), "expected a picture of one frame, found an animated one of 2"),
        (Image.open(BytesIO(animated("GIF"))), "expected a picture of one frame, found an animated one of 2"),
        (animated("GIF"), "expected an image .*, found something else"),
        ("absent.png", "found no file at absent.png"),
        ("https://example.org/a.png", "nothing is fetched from an address, found 'https://example.org/a.png'"),
        ("file:///etc/passwd", "nothing is fetched from an address"),
        ("data:text/html;base64,AAAA", "expected a picture as a data URL, data:image/png;base64,…"),
        ("data:image/svg+xml;base64,AAAA", "or of bmp, jpeg, jpg, png, webp"),
        ("data:image/png,AAAA", "expected a picture as a data URL"),
        ("data:image/png;base64,A", "expected base64 in the data URL"),
        ("data:image/png;base64,\N{LATIN SMALL LETTER E WITH ACUTE}", "expected base64 in the data URL"),
        ("data:image/png;base64,AAAA", "expected an image"),
        (url(b"P3 1 1 255 0 0 0"), "expected an image in a binary form"),
        (5, "expected a picture: a file's path, a data URL.*found 5"),
        (None, "found nothing"),
    ],
)
def test_what_is_wrong_is_said(source: Any, expected: str) -> None:
    with pytest.raises(ImageError, match=expected):
        reader().read(source)


def test_a_data_url_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.readers.picture_reader.MOST_URL", 100)
    with pytest.raises(ImageError, match="expected a data URL of at most 100 characters"):
        content_of(url(bytes(100)))


def test_a_strip_is_no_wall_before_it_is_refused() -> None:
    strip = np.zeros((400, 9000, 3), np.uint8)
    with pytest.raises(ImageError, match="of the square around a picture, found 9000 × 9000"):
        reader(PROCESSORS["squared"]()).read(strip)
    assert reader().read(strip).pixels.shape == (3, 18, 18)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (ConvNextImageProcessorPil(), "expected an image processor among BitImageProcessor, .*found ConvNext"),
        (CLIPImageProcessorPil(do_center_crop=False), "to make pixels of one size of all pictures"),
        (CLIPImageProcessorPil(do_resize=False, do_center_crop=False), "to make pixels of one size"),
        (CLIPImageProcessorPil(do_pad=True), "CLIPImageProcessor with sizes .*found other steps"),
        (ViTImageProcessorPil(size={"longest_edge": 20, "shortest_edge": 10}), "found other steps"),
        (CLIPImageProcessorPil(image_std=[0.0, 1.0, 1.0]), "image_std of 1 or 3 numbers above 0"),
        (CLIPImageProcessorPil(resample=6), "expected a resample of 0 to 5, found 6"),
        (CLIPImageProcessorPil(image_mean=[0.5, 0.5]), r"image_mean of 1 or 3 numbers, found \[0.5, 0.5\]"),
        (LlavaImageProcessorPil(do_pad=True, image_mean=[2.0, 0.5, 0.5]), "image_mean of 0 to 1 to pad with"),
        (CLIPImageProcessorPil(crop_size={"height": 4096, "width": 8}), "expected sizes of 1 to 2048"),
    ],
)
def test_other_processors_are_refused_by_name(processor: BaseImageProcessor, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        PictureReader.of(processor.to_dict(), PICTURES)


def test_each_placeholder_becomes_as_many_tokens_as_a_picture_takes() -> None:
    assert reader().expanded([1, 7, 2, 7], 2) == (1, 7, 7, 7, 7, 2, 7, 7, 7, 7)
    assert reader().expanded([1, 2], 0) == (1, 2)


@pytest.mark.parametrize(
    ("ids", "number", "found"),
    [
        ([1, 7], 0, "0, found 1; give a picture for each, or leave <image> out"),
        ([1, 7], 2, "2, or none, found 1"),
        ([7, 7, 7], 2, "2, or none, found 3"),
        ([1], 1, "1, found none: the chat template leaves out what stands for a picture in these messages"),
    ],
)
def test_more_or_fewer_placeholders_than_pictures_are_refused(ids: list[int], number: int, found: str) -> None:
    with pytest.raises(ImageError, match=f"^expected as many <image> in the text as pictures, {found}$"):
        reader().expanded(ids, number)


def test_pictures_must_leave_room_for_a_word() -> None:
    reader().check_number(2, 9)
    with pytest.raises(ImageError, match="expected at most 1 pictures of 4 tokens each, as there is room for, found 2"):
        reader().check_number(2, 8)
    with pytest.raises(ImageError, match="at most 0"):
        reader().check_number(10**9, 0)


def test_settings_stand_where_transformers_writes_them(tmp_path: Path) -> None:
    assert processor_settings(tmp_path) is None
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    alone = processor_settings(tmp_path)
    assert alone is not None
    assert alone[0] == "preprocessor_config.json"
    assert alone[1]["image_processor_type"] == "CLIPImageProcessor"
    (tmp_path / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    assert processor_settings(tmp_path) == alone


def test_settings_inside_of_a_processors_count_first(tmp_path: Path) -> None:
    known = tiny.tokenizer()
    known.add_special_tokens({"additional_special_tokens": ["<image>"]})
    LlavaProcessor(SiglipImageProcessorPil(), known, patch_size=2).save_pretrained(tmp_path)
    found = processor_settings(tmp_path)
    assert found is not None
    assert found[0] == "processor_config.json"
    assert found[1]["image_processor_type"] == "SiglipImageProcessor"

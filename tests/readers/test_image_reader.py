"""Images that are fine, damaged, hostile, or none."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    BeitImageProcessorPil,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    DeiTImageProcessorPil,
    Dinov2Config,
    ResNetConfig,
    SegformerConfig,
    SegformerImageProcessorPil,
    ViTConfig,
    ViTImageProcessorPil,
)
from transformers.image_processing_utils import BaseImageProcessor

import tiny
from weightpager.backends.torch.architecture import TransformersImageReader as Reader
from weightpager.backends.torch.architecture import load_image_processor
from weightpager.errors import ImageError
from weightpager.readers.image_processor import ImageProcessor
from weightpager.readers.image_reader import FORMATS, Frame, read_image

CONFIG = ViTConfig(image_size=16, patch_size=8)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(load_image_processor(tiny.vit(tmp_path_factory.mktemp("vit"))), CONFIG)


def content(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that claims a size, and has any data."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(data)))
    parts = (
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in (*chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_pixels_are_scaled_and_normalised(reader: Reader, tmp_path: Path) -> None:
    found = reader.read(tiny.picture(tmp_path / "a.png", "white", size=(32, 24)))
    assert found.shape == (3, 16, 16)
    assert found.dtype == np.float32
    assert found.max() == 1.0
    assert np.median(found) == 1.0


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1"])
def test_every_format_and_mode_is_rgb(form: str, mode: str) -> None:
    image = Image.new("RGB", (8, 8), "red").convert(mode)
    found = read_image(
        content(image if form in ("PNG", "BMP", "WEBP") and mode != "RGBA" else image.convert("RGB"), form)
    )
    assert found.mode == "RGB"
    assert found.size == (8, 8)


def test_a_camera_says_which_way_is_up() -> None:
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    turned = Image.Exif()
    turned[0x0112] = 3  # by 180 degrees
    found = read_image(content(image, exif=turned))
    assert np.array_equal(np.asarray(found), np.asarray(image)[::-1, ::-1])


@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        (b"", r"expected an image \(BMP, JPEG, PNG, PPM, WEBP\), found something else"),
        (b"GIF89a" + bytes(20), "found something else"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "found something else"),
        (b"just text", "found something else"),
        (png(16, 16), "found a damaged one"),
        (png(16, 16, bytes(100)), "found a damaged one"),
        (png(0, 16), "found something else, or one without pixels"),
        (png(16, 0), "found something else, or one without pixels"),
        (b"P6 16 0 255\n", "found something else, or one without pixels"),
        (np.zeros((0, 16, 3), np.uint8), "expected a width and a height of at least 1 pixel, found 16 × 0"),
        (np.zeros((16, 0, 3), np.uint8), "expected a width and a height of at least 1 pixel, found 0 × 16"),
        (png(9000, 9000), "expected at most 67108864 pixels, found 9000 × 9000"),
        (png(10_000, 10_000), "expected at most 67108864 pixels"),
        (png(100_000, 100_000), "expected at most 67108864 pixels"),
        (png(1, 1000), "expected sides of at most 1 : 32, found 1 × 1000"),
        (content(Image.new("I;16", (8, 8), 700)), "expected 8 bits a channel, found mode I"),
        (b"P5 8 8 65535\n" + bytes(128), "expected 8 bits a channel, found mode I"),
    ],
)
def test_what_is_wrong_is_said(reader: Reader, damaged: bytes | Frame, expected: str) -> None:
    with pytest.raises(ImageError, match=expected):
        reader.read(damaged)


@pytest.mark.parametrize("form", FORMATS)
def test_a_cut_image_is_no_image(form: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    whole = content(noise, form)
    with pytest.raises(ImageError):
        read_image(whole[: len(whole) * 2 // 3])


@given(st.binary(max_size=200), st.integers(0, 150))
def test_any_bytes_give_an_image_or_an_error(junk: bytes, place: int) -> None:
    whole = content(Image.new("RGB", (8, 8), "red"))
    for damaged in (junk, whole[:place] + junk + whole[place + len(junk) :]):
        with suppress(ImageError):
            assert read_image(damaged).mode == "RGB"


def test_what_is_no_file(reader: Reader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    for name in ("absent.png", "fifo.png", "."):
        with pytest.raises(ImageError, match="expected an image, found no file at"):
            reader.read(tmp_path / name)


def test_fewer_pixels_may_be_allowed(reader: Reader) -> None:
    image = content(Image.new("RGB", (10, 10)))
    assert reader.read(image, most_pixels=100).shape == (3, 16, 16)
    with pytest.raises(ImageError, match="expected at most 99 pixels, found 10 × 10"):
        reader.read(image, most_pixels=99)


def test_a_model_that_takes_any_size_is_given_what_its_processor_makes(reader: Reader, tmp_path: Path) -> None:
    larger = Reader(reader.processor, Dinov2Config(image_size=56, patch_size=8))  # as its directories have it
    assert larger.shape == (3, 16, 16)
    assert larger.read(tiny.picture(tmp_path / "a.png", "white", size=(32, 24))).shape == (3, 16, 16)
    assert Reader(reader.processor, Dinov2Config(image_size=2**24, patch_size=8)).shape == (3, 16, 16)
    with pytest.raises(ImageError, match="expected pixels .*1, 16, 16"):
        Reader(reader.processor, Dinov2Config(image_size=56, patch_size=8, num_channels=1)).read(tmp_path / "a.png")


def test_a_model_that_states_no_size_takes_what_its_processor_makes_of_any_image(reader: Reader) -> None:
    for config in (SegformerConfig(), ResNetConfig()):
        assert getattr(config, "image_size", None) is None
        assert Reader(reader.processor, config).shape == (3, 16, 16)
        assert Reader(ViTImageProcessorPil(size={"height": 12, "width": 20}), config).shape == (3, 12, 20)
        assert Reader(ViTImageProcessorPil(do_resize=False), config).shape is None


def test_the_model_must_take_what_the_processor_makes(reader: Reader) -> None:
    other = Reader(reader.processor, ViTConfig(image_size=32, patch_size=8))
    with pytest.raises(ImageError, match=r"expected pixels \[3, 32, 32\].*gave \[3, 16, 16\]"):
        other.read(content(Image.new("RGB", (8, 8))))


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ('{"height": 1000000, "width": 8}', 1000000),
        ('{"height": 0, "width": 8}', 0),
        ('{"shortest_edge": 0}', 0),
        ("4096", 4096),
    ],
)
def test_a_processor_may_not_scale_to_anything(tmp_path: Path, size: str, found: int) -> None:
    folder = tiny.vit(tmp_path)
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace('{"height": 16, "width": 16}', size))
    with pytest.raises(ValueError, match=f"expected sizes of 1 to 2048, found size {found}$"):
        load_image_processor(folder)


PROCESSORS: dict[str, Callable[[], BaseImageProcessor]] = {
    "vit": partial(ViTImageProcessorPil, size={"height": 12, "width": 20}),
    "shorter edge": partial(BitImageProcessorPil, size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}),
    "padded": partial(DeiTImageProcessorPil, size={"height": 9, "width": 30}, crop_size={"height": 16, "width": 21}),
    "nearest": partial(BeitImageProcessorPil, size={"height": 16, "width": 16}, resample=0, image_mean=[0.1, 0.2, 0.3]),
    "as it is": partial(ViTImageProcessorPil, do_resize=False, do_normalize=False),
    "unscaled": partial(SegformerImageProcessorPil, size={"height": 17, "width": 8}, do_rescale=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
@given(height=st.integers(2, 40), width=st.integers(2, 40), seed=st.integers(0, 99))
def test_pixels_are_those_of_transformers_bit_for_bit(name: str, height: int, width: int, seed: int) -> None:
    try:
        processor = PROCESSORS[name]()
    except ImportError as error:  # Segformer's needs torchvision in transformers 5.20, the last for Python 3.10
        pytest.skip(str(error).strip().partition("\n")[0])
    own = ImageProcessor.of(processor.to_dict())
    assert own is not None
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))
    wanted = processor(images=image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(own(image), wanted.astype(np.float32))


@pytest.mark.parametrize(
    "processor",
    [
        CLIPImageProcessorPil(),
        ViTImageProcessorPil(size={"longest_edge": 20, "shortest_edge": 10}),
        ViTImageProcessorPil(do_pad=True),
    ],
)
def test_processors_that_do_more_are_left_to_transformers(processor: BaseImageProcessor) -> None:
    assert ImageProcessor.of(processor.to_dict()) is None

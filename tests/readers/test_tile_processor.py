"""Tiles and the words between them, as transformers' own processors over Pillow make them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image
from transformers import (
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMImageProcessorPil,
)
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

import tiny_pairs
import tiny_tiles
from tiny_tiles import BORDER, IMAGE, PLACES, WHOLE
from weightpager.bundle.format.manifest import Pictures, Tiles
from weightpager.compiler.data import reader_of
from weightpager.readers.image_processor import MOST_RATIO
from weightpager.readers.picture_reader import PictureReader
from weightpager.readers.tile_processor import TileProcessor, tile_text, tiles_of

PROCESSORS = {"Idefics3": Idefics3ImageProcessorPil, "SmolVLM": SmolVLMImageProcessorPil}

SETTINGS: list[dict[str, Any]] = [
    {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 32}},
    {"size": {"longest_edge": 45}, "max_image_size": {"longest_edge": 15}, "resample": 3},
    {"size": {"longest_edge": 90}, "max_image_size": {"longest_edge": 28}, "do_pad": False},
    {"size": {"longest_edge": 90}, "max_image_size": {"longest_edge": 28}, "do_image_splitting": False},
    {"size": {"longest_edge": 20}, "max_image_size": {"longest_edge": 32}, "resample": 2},
    {"size": {"longest_edge": 60}, "max_image_size": {"longest_edge": 20}, "image_mean": [0.4, 0.5, 0.6]},
]


def noise(height: int, width: int) -> Image.Image:
    random = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


@given(st.sampled_from(sorted(PROCESSORS)), st.sampled_from(SETTINGS), st.integers(1, 150), st.integers(1, 150))
def test_tiles_are_those_of_transformers(family: str, settings: dict[str, Any], height: int, width: int) -> None:
    if max(height, width) > MOST_RATIO * min(height, width):
        height = width = max(height, width)
    theirs, image = PROCESSORS[family](**settings), noise(height, width)
    ours, wanted = TileProcessor(theirs.to_dict()), theirs(images=image, return_tensors="np", return_row_col_info=True)
    scaled = ours.scaled(image)
    found, grid = ours.tiles(scaled), ours.grid(scaled)
    assert found.dtype == np.float32
    assert np.array_equal(found, wanted["pixel_values"][0])
    split = (0, 0) if grid == (1, 1) else grid
    assert split == (wanted["rows"][0][0], wanted["cols"][0][0])
    assert len(found) == tiles_of(grid) <= ours.most


@pytest.mark.parametrize("size", [(3000, 40), (1, 30), (30, 1), (1, 1), (700, 2100), (2049, 2047)])
def test_large_and_narrow_pictures_are_those_of_transformers(size: tuple[int, int]) -> None:
    theirs, image = Idefics3ImageProcessorPil(), noise(*size)
    ours = TileProcessor(theirs.to_dict())
    assert np.array_equal(ours.tiles(ours.scaled(image)), theirs(images=image, return_tensors="np")["pixel_values"][0])


def form(token_id: int) -> Pictures:
    tiles, most = Tiles(places=PLACES, border=BORDER, whole=WHOLE), PLACES * (tiny_tiles.A_SIDE**2 + 1)
    return Pictures(
        blocks="shared", layers=1, token=IMAGE, token_id=token_id, tokens=most, width=8, tiles=tiles
    )  # fmt: skip


def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """Some read a new line as a token, or two as one; some leave it out; one knows no words for rows and columns."""
    found = {"words": tiny_tiles.tokenizer()}
    marks = {"bytes": tiny_tiles.MARKS, "fallback": tiny_tiles.MARKS, "spelled": []}
    for name, more in marks.items():
        inner = tiny_pairs.by_fallback() if name == "fallback" else tiny_pairs.by_level()
        found[name] = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>")
        found[name].add_special_tokens({"additional_special_tokens": [IMAGE, BORDER, WHOLE, *more]})
    return found


@pytest.mark.parametrize("name", ["words", "bytes", "fallback", "spelled"])
def test_texts_have_the_tokens_of_transformers(name: str) -> None:
    tokenizer = tokenizers()[name]
    processor = Idefics3ImageProcessorPil(**{k: v for k, v in tiny_tiles.processor().items() if "type" not in k})
    theirs = Idefics3Processor(processor, tokenizer, image_seq_len=PLACES)
    stated = form(tokenizer.convert_tokens_to_ids(IMAGE))
    settings = processor.to_dict() | {"image_processor_type": "Idefics3ImageProcessor"}
    own = reader_of(tokenizer, PictureReader.of(settings, stated))
    assert own.pictures is not None
    sizes = [(20, 20), (60, 10), (9, 70), (48, 32), (1, 30), (33, 48)]
    for count, text in enumerate(
        ("cat", f"{IMAGE}", f"{IMAGE}{IMAGE}two", f" red {IMAGE} green\n{IMAGE}\n\n{IMAGE} fox", f"a{IMAGE}\n" * 4)
    ):
        images = [noise(*size) for size in sizes[:count]]
        wanted = theirs(text=text, images=[images] if images else None, add_special_tokens=False)["input_ids"][0]
        read = [own.pictures.read(image) for image in images]
        ids = own.prompt(text, bos=False, pictures=count)
        assert list(own.pictures.placed(ids, read)) == (wanted if isinstance(wanted, list) else [wanted])
        assert sum(picture.tokens for picture in read) == list(wanted).count(stated.token_id) if images else True


def test_the_words_are_smolvlms() -> None:
    """Its processor needs a package for videos; this is what it calls."""
    for grid in ((1, 1), (1, 2), (3, 1), (3, 3)):
        rows, columns = (0, 0) if grid == (1, 1) else grid
        assert tile_text(grid, form(16)) == get_image_prompt_string(rows, columns, 1, BORDER, IMAGE, WHOLE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": None}, "expected size of a longest_edge of 1 to 2048, found nothing"),
        ({"size": {"longest_edge": 0}}, "expected size of a longest_edge"),
        ({"size": {"longest_edge": True}}, "expected size of a longest_edge"),
        ({"size": {"longest_edge": 32.5}}, "expected size of a longest_edge"),
        ({"size": {"longest_edge": 48, "shortest_edge": 20}}, "expected size of a longest_edge"),
        ({"max_image_size": {"height": 16, "width": 16}}, "expected max_image_size of a longest_edge of 1 to 2048"),
        ({"max_image_size": {"longest_edge": 4096}}, "expected max_image_size of a longest_edge of 1 to 2048"),
        ({"size": {"longest_edge": 257}}, "expected a size.longest_edge of at most 256, 16 tiles a side, found 257"),
        ({"do_resize": False}, "expected Idefics3ImageProcessor or SmolVLMImageProcessor that scales pictures"),
        ({"do_center_crop": True}, "crops none"),
        ({"do_normalize": False}, "expected image_mean and image_std that make no colour zero in all channels"),
        ({"image_mean": [0.2] * 3}, "expected image_mean and image_std that make no colour zero in all channels"),
        ({"image_processor_type": "CLIPImageProcessor"}, "expected Idefics3ImageProcessor or SmolVLMImageProcessor"),
    ],
)
def test_odd_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    settings = tiny_tiles.processor(do_resize=True, do_rescale=True, do_normalize=True, rescale_factor=1 / 255)
    assert TileProcessor(settings).most == 10
    with pytest.raises(ValueError, match=said):
        TileProcessor(settings | changes)
    with pytest.raises(ValueError, match="expected pictures of at most 20 tokens, found 40 of the largest"):
        PictureReader.of(settings, replace(form(16), tokens=20))

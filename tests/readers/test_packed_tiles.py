"""LLaVA-NeXT's tiles, and how their features are put together, as transformers has both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import LlavaNextImageProcessorPil
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

import tiny_next
from weightpager.bundle.format.manifest import PackedTiles
from weightpager.readers.image_processor import MOST_RATIO
from weightpager.readers.packed_tiles import PackedProcessor, best_size, order, packed, tile_count

SIDE = 16
SIZES: list[list[tuple[int, int]]] = [
    [(16, 32), (32, 16), (32, 32), (48, 16), (16, 48)],
    [(16, 16)],
    [(16, 16 * columns) for columns in range(1, 7)] + [(16 * rows, 16) for rows in range(2, 7)],
]


def noise(height: int, width: int) -> Image.Image:
    random = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


def theirs_of(sizes: list[tuple[int, int]]) -> LlavaNextImageProcessorPil:
    crop = {"height": SIDE, "width": SIDE}
    return LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=crop, image_grid_pinpoints=sizes)


@given(st.sampled_from(SIZES), st.integers(1, 150), st.integers(1, 150))
def test_tiles_and_their_order_are_those_of_transformers(sizes: list[tuple[int, int]], height: int, width: int) -> None:
    if max(height, width) > MOST_RATIO * min(height, width):
        height = width = max(height, width)
    theirs, image = theirs_of(sizes), noise(height, width)
    ours, wanted = PackedProcessor(theirs.to_dict()), theirs(images=image, return_tensors="np")
    found = ours.pixels(ours.parts(image))
    assert found.dtype == np.float32
    assert np.array_equal(found, wanted["pixel_values"][0])
    size, tiles = (height, width), PackedTiles(side=SIDE, patches=4, sizes=sizes)
    assert wanted["image_sizes"][0].tolist() == list(size)
    assert best_size(size, sizes) == select_best_resolution(size, sizes)
    assert tile_count(size, tiles) == len(found) <= tiles.tiles

    class Config:
        class vision_config:  # noqa: N801
            image_size, patch_size = SIDE, SIDE // 4

        image_grid_pinpoints = sizes

    class Packing:
        config = Config()

    features, newline = torch.randn(len(found), 16, 3), torch.randn(3)
    (put,), _ = LlavaNextModel.pack_image_features(
        Packing(), [features], torch.tensor([size]), "default", newline  # type: ignore[arg-type]
    )  # fmt: skip
    ended = torch.cat([features, newline.expand(len(found), 1, 3)], 1).numpy()
    assert np.array_equal(packed(ended, size, tiles), put.numpy())
    assert len(order(size, tiles)) <= tiles.tokens


@pytest.mark.parametrize("size", [(700, 2000), (1, 30), (30, 1), (1, 1), (3000, 100)])
def test_large_and_narrow_pictures_are_those_of_transformers(size: tuple[int, int]) -> None:
    theirs, image = LlavaNextImageProcessorPil(image_grid_pinpoints=[[224, 448], [448, 448]]), noise(*size)
    ours = PackedProcessor(theirs.to_dict())
    wanted = theirs(images=image, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(ours.pixels(ours.parts(image)), wanted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": {"shortest_edge": 14}}, "expected one side of 1 to 2048 in size and crop_size"),
        ({"size": {"shortest_edge": 0}, "crop_size": None}, "expected one side"),
        ({"size": {"shortest_edge": True}, "crop_size": None}, "expected one side"),
        ({"size": None, "crop_size": None}, "expected one side"),
        ({"image_grid_pinpoints": None}, "expected image_grid_pinpoints of 1 to 64 heights and widths of whole tiles"),
        ({"image_grid_pinpoints": []}, "expected image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[28, 28]] * 65}, "expected image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[28, 29]]}, "of whole tiles of 28"),
        ({"image_grid_pinpoints": [[28, 2800]]}, "2048 at most"),
        ({"image_grid_pinpoints": [[28]]}, "expected image_grid_pinpoints"),
        ({"image_grid_pinpoints": [[28, 28.0]]}, "expected image_grid_pinpoints"),
        ({"image_grid_pinpoints": 28}, "expected image_grid_pinpoints"),
        ({"image_processor_type": "LlavaImageProcessor"}, "expected a LlavaNextImageProcessor"),
    ],
)
def test_odd_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    settings = tiny_next.processor()
    assert PackedProcessor(settings).side == tiny_next.SIDE
    with pytest.raises(ValueError, match=said):
        PackedProcessor(settings | changes)

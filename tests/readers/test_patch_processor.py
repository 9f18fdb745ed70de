"""Runs of patches, bit for bit those of transformers' own processor over Pillow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

import tiny_qwen2_vl
from weightpager.readers.patch_processor import MOST_RATIO, PatchProcessor, patch_positions, window_order

SETTINGS: list[dict[str, Any]] = [
    {},
    {"size": {"shortest_edge": 56**2, "longest_edge": 28**2 * 16}},
    {"min_pixels": 4 * 28**2, "max_pixels": 4 * 28**2},
    {"patch_size": 8, "merge_size": 3, "temporal_patch_size": 1, "min_pixels": 24**2, "max_pixels": 24**2 * 40},
    {"do_normalize": False, "resample": 2, "size": {"shortest_edge": 1, "longest_edge": 28**2 * 9}},
    {"do_rescale": False, "image_mean": [99.0, 1.0, 3.0], "image_std": [3.0, 2.0, 1.0]},
]


def noise(height: int, width: int) -> Image.Image:
    random = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


@given(st.sampled_from(SETTINGS), st.integers(1, 150), st.integers(1, 150))
def test_patches_are_those_of_transformers(settings: dict[str, Any], height: int, width: int) -> None:
    if max(height, width) > MOST_RATIO * min(height, width):
        height = width = max(height, width)
    theirs, image = Qwen2VLImageProcessorPil(**settings), noise(height, width)
    ours, wanted = PatchProcessor(theirs.to_dict()), theirs(images=image, return_tensors="np")
    found, grid = ours.patches(ours.scaled(image)), ours.grid(height, width)
    assert found.dtype == np.float32
    assert found.shape[1] == ours.merge**2
    assert np.array_equal(found.reshape(-1, found.shape[-1]), wanted["pixel_values"])
    assert [1, *(side * ours.merge for side in grid)] == wanted["image_grid_thw"][0].tolist()
    assert len(found) == grid[0] * grid[1] <= ours.places


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 4), st.integers(1, 9))
def test_positions_and_windows_are_those_of_transformers(rows: int, columns: int, merge: int, window: int) -> None:
    sides = torch.tensor([[1, rows * merge, columns * merge]])
    at = patch_positions((rows, columns), merge)
    assert at.shape == (rows * columns, merge**2, 2)
    assert np.array_equal(at.reshape(-1, 2), get_vision_position_ids(sides, merge).numpy())
    order, windows = window_order((rows, columns), window)
    wanted, ends = get_vision_window_index(sides, merge, window * merge * 14, 14)
    assert np.array_equal(order, wanted.numpy())
    assert np.array_equal(np.repeat(windows, merge**2), np.repeat(np.unique(windows), np.diff(ends.numpy())))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"patch_size": 0}, "expected patch_size of 1 to 64, found 0"),
        ({"patch_size": 14.0}, "expected patch_size of 1 to 64, found 14.0"),
        ({"patch_size": [14, 14]}, "expected patch_size of 1 to 64"),
        ({"merge_size": 17}, "expected merge_size of 1 to 16, found 17"),
        ({"merge_size": True}, "expected merge_size of 1 to 16, found True"),
        ({"temporal_patch_size": None}, "expected temporal_patch_size of 1 to 8, found nothing"),
        ({"min_pixels": None}, "expected a size of shortest_edge and longest_edge"),
        ({"max_pixels": 10}, "expected a size of shortest_edge and longest_edge"),
        ({"max_pixels": 10**30}, "expected a size of shortest_edge and longest_edge"),
        ({"max_pixels": 2**30}, r"expected a size \(max_pixels\) of at most 1048576 pixels, found 1073741824"),
        ({"do_resize": False}, "that scales pictures"),
        ({"do_center_crop": True}, "neither crops nor pads"),
        ({"do_pad": True}, "neither crops nor pads"),
        ({"image_processor_type": "CLIPImageProcessor"}, "expected a Qwen2VLImageProcessor"),
    ],
)
def test_odd_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    settings = tiny_qwen2_vl.processor(do_resize=True, do_rescale=True, do_normalize=True, rescale_factor=1 / 255)
    PatchProcessor(settings)
    with pytest.raises(ValueError, match=said):
        PatchProcessor(settings | changes)


def test_a_wide_picture_takes_no_more_places_than_there_are() -> None:
    ours = PatchProcessor(tiny_qwen2_vl.processor(do_resize=True))
    for side in range(1, 40):
        for other in (side, 3 * side, MOST_RATIO * side):
            for rows, columns in (ours.grid(side, other), ours.grid(other, side)):
                assert 1 <= rows * columns <= ours.places

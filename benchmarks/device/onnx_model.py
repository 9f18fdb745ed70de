"""A task as an ONNX model, in float32 and in ONNX Runtime's dynamic int8."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits [texts, classes]."""
        found: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return found


def write_models(exported: Path, folder: Path) -> dict[str, Path]:
    """ONNX models by name.

    Args:
        exported: a directory of transformers, as `weightpager export` writes it.
        folder: for the models.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic  # what the benchmark's user installs

    model = AutoModelForSequenceClassification.from_pretrained(exported).eval()
    ids = torch.ones(2, 8, dtype=torch.int64)
    found = {"onnx_float32": folder / "float32.onnx", "onnx_int8": folder / "int8.onnx"}
    batch, length = torch.export.Dim("batch", min=1, max=256), torch.export.Dim("length", min=2, max=512)
    sizes = {0: batch, 1: length}
    program = torch.onnx.export(_Logits(model), (ids, ids.clone()), dynamo=True, dynamic_shapes=(sizes, sizes))
    assert program is not None
    program.save(found["onnx_float32"])
    quantize_dynamic(found["onnx_float32"], found["onnx_int8"], weight_type=QuantType.QInt8)
    return found

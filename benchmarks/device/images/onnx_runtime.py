"""What people would run instead: ``python -m benchmarks.device.images.onnx_runtime MODEL PICTURES SIZE THREADS``.

Needs ``onnxruntime``, ``numpy`` and ``Pillow``, and nothing of ours. Pixels are scaled to -1 to 1, as ViT has them.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from benchmarks.device.images.work import work

if __name__ == "__main__":
    path, pictures, size, threads = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(pixels: np.ndarray) -> object:
        """Logits of pixels [pictures, channels, height, width]."""
        return session.run(None, {"pixel_values": pixels})

    def answer(file: str) -> object:
        """Logits of a picture."""
        side = int(size)
        scaled = Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        return forward((np.asarray(scaled, np.float32).transpose(2, 0, 1) / 127.5 - 1)[None])

    work(answer, forward, (3, int(size), int(size)), Path(pictures))

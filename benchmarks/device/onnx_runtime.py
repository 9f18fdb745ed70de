"""What people would run instead: ``python -m benchmarks.device.onnx_runtime MODEL TOKENIZER LENGTH TEXTS THREADS``.

Needs ``onnxruntime``, ``numpy`` and ``tokenizers``, and nothing of ours.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from benchmarks.device.work import work

if __name__ == "__main__":
    path, tokenizer_file, length, texts, threads = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(length))

    def forward(ids: np.ndarray) -> object:
        """Logits of ids, int64 [texts, tokens]."""
        return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    work(
        lambda text: forward(np.array([tokenizer.encode(text).ids], np.int64)),
        forward,
        tokenizer.get_vocab_size(),
        Path(texts),
    )

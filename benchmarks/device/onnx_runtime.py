"""What people would run instead: ``python -m benchmarks.device.onnx_runtime TOKENIZER LENGTH TEXTS THREADS MODEL ...``.

A session for each model, all of them open before the first answer. Needs ``onnxruntime``, ``numpy`` and ``tokenizers``,
and nothing of ours.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from benchmarks.device.work import work

if __name__ == "__main__":
    tokenizer_file, length, texts, threads, *models = sys.argv[1:]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    sessions = {
        model: onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for model in models
    }
    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(length))

    def forward(model: str, ids: np.ndarray) -> object:
        """Logits of ids, int64 [texts, tokens]."""
        return sessions[model].run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    work(
        models,
        lambda model, text: forward(model, np.array([tokenizer.encode(text).ids], np.int64)),
        lambda ids: forward(models[-1], ids),
        tokenizer.get_vocab_size(),
        Path(texts),
    )

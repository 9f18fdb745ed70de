"""What people would run instead: ``python -m benchmarks.device.any_size.llama_cpp_python GGUF THREADS``.

It reads made-up ids, as many as a question about a frame has. Needs ``llama-cpp-python`` and ``numpy``.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from itertools import islice
from statistics import median

import numpy as np

from benchmarks.device.any_size.work import DECODED, LENGTH, SHOWN, ms
from benchmarks.device.llama_cpp_model import LlamaModel
from benchmarks.device.work import FIRST, peak_bytes


def figures(path: str, threads: int) -> dict[str, float]:
    model, random = LlamaModel(path), np.random.default_rng(0)
    context = model.context(LENGTH + 1 + DECODED, threads)
    next(model.grow(context, random.integers(0, model.words, 1)))
    print(FIRST, flush=True)
    texts, decode = [], []
    for _ in range(SHOWN):
        tokens = model.grow(context, random.integers(0, model.words, LENGTH))
        texts.append(ms(partial(next, tokens)))
        decode.append(ms(partial(list, islice(tokens, DECODED))) / DECODED)
    return {
        "ms_text_first_token": median(texts),
        "decode_per_s": 1e3 / median(decode),
        "peak_bytes": peak_bytes(),
    }


if __name__ == "__main__":
    json.dump(figures(sys.argv[1], int(sys.argv[2])), sys.stdout)

"""What people would run for good: ``python -m benchmarks.box.peers MODEL TOKENIZER LENGTH GGUF TOKENS``.

An ONNX model that classifies texts and a GGUF file that writes, in one process, on all cores. Reads a list of
``[kind, text]`` as JSON, answers each, and prints what that took as JSON. Needs ``onnxruntime``, ``llama-cpp-python``,
``tokenizers`` and ``numpy``, and nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from benchmarks.device.llama_cpp_model import LlamaModel

CONTEXT = 384
"""Tokens of a text and its answer; as many as the bundle's tasks take."""


def main(model: str, tokenizer_file: str, length: str, gguf: str, tokens: str) -> None:
    tokenizer = Tokenizer.from_file(tokenizer_file)
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(length))
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    writer = LlamaModel(gguf)
    context = writer.context(CONTEXT, len(os.sched_getaffinity(0)))

    def answer(kind: str, text: str) -> None:
        if kind == "writing":
            list(islice(writer.grow(context, writer.ids(text)), int(tokens)))
        else:
            ids = np.array([tokenizer.encode(text).ids], np.int64)
            session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})

    requests = json.load(sys.stdin)
    for kind, text in {kind: (kind, text) for kind, text in requests}.values():
        answer(kind, text)
    seconds = dict[str, list[float]]()
    for kind, text in requests:
        begun = time.perf_counter()
        answer(kind, text)
        seconds.setdefault(kind, []).append(time.perf_counter() - begun)
    found = {f"answer_{kind}": fmean(each) for kind, each in seconds.items()}
    json.dump({"wait": 0.0, **found, "process_bytes": _resident_bytes()}, sys.stdout)


def _resident_bytes() -> int:
    """Resident bytes of this process, pages of mapped files included; shared ones in its part."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("Pss:")))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What people would run instead: ``python -m benchmarks.device.decoder.llama_cpp_python GGUF THREADS``.

Needs ``llama-cpp-python`` and ``numpy``, and nothing of ours. The context has just the tokens of the longest text.
"""

import sys
from functools import partial

from benchmarks.device.decoder.work import CONTEXT, work
from benchmarks.device.llama_cpp_model import LlamaModel

if __name__ == "__main__":
    path, threads = sys.argv[1], int(sys.argv[2])
    model = LlamaModel(path)
    work(partial(model.grow, model.context(CONTEXT, threads)), model.words)

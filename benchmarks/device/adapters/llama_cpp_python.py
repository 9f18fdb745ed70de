"""What people would run instead: ``python -m benchmarks.device.adapters.llama_cpp_python GGUF THREADS ADAPTER ...``.

All adapters are in memory. Needs ``llama-cpp-python`` and ``numpy``, and nothing of ours.
"""

import sys
from functools import partial
from typing import Any

import llama_cpp

from benchmarks.device.adapters.work import DECODED, READ, Swaps, work
from benchmarks.device.llama_cpp_model import LlamaModel

if __name__ == "__main__":
    path, threads, *files = sys.argv[1:]
    model = LlamaModel(path)
    adapters: dict[str, Any] = {each: model.adapter(each) for each in files}
    context = model.context(READ + DECODED + 1, int(threads))

    def use(name: str) -> None:
        if name.startswith("from disk "):
            file = name.removeprefix("from disk ")
            model.use(context)
            llama_cpp.llama_adapter_lora_free(adapters[file])
            adapters[file] = model.adapter(file)
            name = file
        model.use(context, *([adapters[name]] if name else []))

    swaps: Swaps = {"ms_swap_in_memory": (files[:2], 100)}
    if len(files) > 3:
        swaps = {**swaps, "ms_swap": ([f"from disk {each}" for each in files[2:]], 3)}
    work(use, partial(model.grow, context), model.words, swaps)

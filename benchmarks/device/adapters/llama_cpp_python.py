"""What people would run instead: ``python -m benchmarks.device.adapters.llama_cpp_python GGUF THREADS ADAPTER ...``.

All adapters are in memory. Needs ``llama-cpp-python`` and ``numpy``, and nothing of ours.
"""

import sys
from collections.abc import Iterator
from ctypes import c_float
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from benchmarks.device.adapters.work import DECODED, READ, Swaps, work

if __name__ == "__main__":
    path, threads, *files = sys.argv[1:]
    silent = llama_cpp.llama_log_callback(lambda *_: None)  # kept, as llama.cpp calls it to the end
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    adapters: dict[str, Any] = {each: llama_cpp.llama_adapter_lora_init(model, each.encode()) for each in files}
    if not all(adapters.values()):
        raise SystemExit("llama.cpp couldn't read the adapters")
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = READ + DECODED + 1
    parameters.n_threads = parameters.n_threads_batch = int(threads)
    context = llama_cpp.llama_init_from_model(model, parameters)
    words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def use(name: str) -> None:
        if name.startswith("from disk "):
            file = name.removeprefix("from disk ")
            llama_cpp.llama_set_adapters_lora(context, None, 0, None)
            llama_cpp.llama_adapter_lora_free(adapters[file])
            adapters[file] = llama_cpp.llama_adapter_lora_init(model, file.encode())
            name = file
        found = [adapters[name]] if name else []
        kind = llama_cpp.llama_adapter_lora_p_ctypes * len(found)
        scales = (c_float * len(found))(*(1.0 for _ in found))
        llama_cpp.llama_set_adapters_lora(context, kind(*found), len(found), scales)

    def grow(ids: npt.NDArray[np.int64]) -> Iterator[int]:
        """Token after token, the likeliest each."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        now = ids.tolist()
        while True:
            tokens = (llama_cpp.llama_token * len(now))(*now)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(now))) != 0:
                raise SystemExit("llama.cpp couldn't read the tokens")
            logits = llama_cpp.llama_get_logits_ith(context, -1)
            now = [int(np.ctypeslib.as_array(logits, (words,)).argmax())]
            yield now[0]

    swaps: Swaps = {"ms_swap_in_memory": (files[:2], 100)}
    if len(files) > 3:
        swaps = {**swaps, "ms_swap": ([f"from disk {each}" for each in files[2:]], 3)}
    work(use, grow, words, swaps)

"""What people would run instead: ``python -m benchmarks.device.decoder.llama_cpp_python GGUF THREADS``.

Needs ``llama-cpp-python`` and ``numpy``, and nothing of ours. The context has just the tokens of the longest text.
"""

import sys
from collections.abc import Iterator

import llama_cpp
import numpy as np
import numpy.typing as npt

from benchmarks.device.decoder.work import CONTEXT, work

if __name__ == "__main__":
    path, threads = sys.argv[1], int(sys.argv[2])
    silent = llama_cpp.llama_log_callback(lambda *_: None)  # kept, as llama.cpp calls it to the end
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = CONTEXT
    parameters.n_threads = parameters.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, parameters)
    words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

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

    work(grow, words)

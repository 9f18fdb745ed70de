"""A decoder in llama.cpp, for processes that are measured; needs ``llama-cpp-python``, and nothing of ours."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_float
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

_SILENT = llama_cpp.llama_log_callback(lambda *_: None)  # kept, as llama.cpp calls it to the end


class LlamaModel:
    """A model of a GGUF file, which continues texts greedily.

    Attributes:
        model: llama.cpp's.
        words: ids are below it.
    """

    def __init__(self, path: str) -> None:
        llama_cpp.llama_log_set(_SILENT, None)
        llama_cpp.llama_backend_init()
        self.model: Any = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self.words = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model)))

    def ids(self, text: str) -> npt.NDArray[np.int64]:
        """The tokens of a text [tokens], with what texts begin with."""
        words, written = llama_cpp.llama_model_get_vocab(self.model), text.encode()
        room = (llama_cpp.llama_token * (len(written) + 2))()
        count = llama_cpp.llama_tokenize(words, written, len(written), room, len(room), True, False)
        return np.array(room[:count], np.int64)

    def context(self, tokens: int, threads: int) -> Any:
        """Memory for one text of so many tokens."""
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = tokens
        parameters.n_threads = parameters.n_threads_batch = threads
        return llama_cpp.llama_init_from_model(self.model, parameters)

    def adapter(self, path: str) -> Any:
        """A LoRA file's, for `use`."""
        found = llama_cpp.llama_adapter_lora_init(self.model, path.encode())
        if not found:
            raise SystemExit(f"llama.cpp couldn't read {path}")
        return found

    def use(self, context: Any, *adapters: Any) -> None:
        """Decode with these adapters from now on, as strong as they are."""
        kind = llama_cpp.llama_adapter_lora_p_ctypes * len(adapters)
        scales = (c_float * len(adapters))(*(1.0 for _ in adapters))
        llama_cpp.llama_set_adapters_lora(context, kind(*adapters), len(adapters), scales)

    def grow(self, context: Any, ids: npt.NDArray[np.int64]) -> Iterator[int]:
        """Forget what was read, read ids [tokens], and give token after token, the likeliest each."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        now = ids.tolist()
        while True:
            tokens = (llama_cpp.llama_token * len(now))(*now)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(tokens, len(now))) != 0:
                raise SystemExit("llama.cpp couldn't read the tokens")
            logits = llama_cpp.llama_get_logits_ith(context, -1)
            now = [int(np.ctypeslib.as_array(logits, (self.words,)).argmax())]
            yield now[0]

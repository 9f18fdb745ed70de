"""Files for llama.cpp, written by llama.cpp."""

from __future__ import annotations

from pathlib import Path


def as_q4_0(file: Path, folder: Path) -> Path:
    """Another file's model in Q4_0, in a folder; one that is there isn't written again."""
    import llama_cpp  # what the benchmark's user installs

    found = folder / f"{file.stem}-as-Q4_0.gguf"
    if found.exists():
        return found
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if llama_cpp.llama_model_quantize(str(file).encode(), str(found).encode(), parameters) != 0:
        raise SystemExit(f"llama.cpp couldn't write {file} in Q4_0")
    return found

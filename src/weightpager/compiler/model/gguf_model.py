"""A GGUF file as a model directory: transformers reads its values, as they are dequantised, and its words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from weightpager.backends.torch.architecture import quiet_transformers
from weightpager.bundle.files.entry import hash_file
from weightpager.bundle.settings import CONFIG
from weightpager.compiler.model.gguf_header import GgufHeader
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import GGUF
from weightpager.config import cache_dir, format_size
from weightpager.errors import CompileError, ConfigError, first_line, shown
from weightpager.machine.memory import read_memory

_NAME = "model.gguf"

_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "phi3")

_BY_DIGIT = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell"})
"""Ways to split texts that are GPT-2's but for digits, which stand alone."""

_AS_GPT2 = frozenset({"gpt-2", "phi-2", "olmo", "jais"})

_ROUNDED_ONCE = frozenset({"Q4_0", "F32", "F16", "BF16", "Q6_K", "Q8_0"})
"""Types that int4 holds but for the last bits of a scale, and those of many bits, rounded for the first time."""

_log = logging.getLogger(__name__)


def with_directory(task_file: TaskFile) -> TaskFile:
    """The task file with a directory in the place of a GGUF file; others stay as they are.

    Raises:
        CompileError: the file can't be read, or is of a model that isn't known.
        ConfigError: transformers lacks what it takes.
    """
    if task_file.model.suffix != GGUF:
        return task_file
    header = GgufHeader.read(task_file.model)
    again = ", ".join(sorted(header.types.keys() - _ROUNDED_ONCE))
    if again and task_file.dtype == "int4":
        remedy = "as they don't those of Q4_0: state 'dtype: int8', or recover"
        _log.warning("%s: int4 pages round values of %s once more, %s", task_file.model, again, remedy)
    return task_file.model_copy(update={"model": directory_of(task_file.model, cache_dir() / "gguf", header)})


def directory_of(file: Path, cache: Path, header: GgufHeader | None = None) -> Path:
    """A GGUF file's model as a directory, which is made once in a cache. Errors are those of `with_directory`."""
    header = header or GgufHeader.read(file)
    _check(file, header)
    try:
        folder = cache / hash_file(file).blake3[:32]
        if (folder / CONFIG).is_file():
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        types = ", ".join(f"{count} of {kind}" for kind, count in sorted(header.types.items()))
        _log.info("%s: dequantise tensors (%s) into %s …", file, types, folder)
        with TemporaryDirectory(dir=cache, prefix=".unfinished-") as made:
            whole = Path(made) / "model"
            _convert(file, header, whole)
            with suppress(OSError):  # somebody else was faster
                whole.rename(folder)
    except OSError as error:
        raise CompileError(f"{file}: cannot be turned into a directory: {error}") from error
    if not (folder / CONFIG).is_file():
        raise CompileError(f"{file}: expected room for its directory in {cache}, found none")
    return folder


def _check(file: Path, header: GgufHeader) -> None:
    """Refuse what would be read as something else than it is."""
    architecture, words = header.text("general.architecture"), header.text("tokenizer.ggml.model")
    if architecture not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise CompileError(f"{file}: expected a model like {known}, found {shown(architecture)}")
    if header.settings.get("split.count", 1) not in (0, 1):
        raise CompileError(f"{file}: expected the whole model, found one of {header.settings['split.count']} files")
    splits = header.text("tokenizer.ggml.pre")
    if words == "gpt2" and splits not in {*known_splits(), *_BY_DIGIT, *_AS_GPT2}:
        raise CompileError(f"{file}: expected a known way to split texts into words, found {shown(splits)}")
    if words not in ("gpt2", "llama"):
        raise CompileError(f"{file}: expected a tokenizer of byte pairs or SentencePiece, found {shown(words)}")
    needed, free = 10 * header.parameters, read_memory().usable_bytes  # in float32, and as it is written
    if free is not None and needed > free:
        raise CompileError(
            f"{file}: expected {format_size(needed)} of free memory to dequantise it, found {format_size(free)}; "
            "take the model's directory, which is read in parts"
        )


def known_splits() -> frozenset[str]:
    """Names of the ways to split texts that transformers knows. Raises `ConfigError` if it is too old to know any."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError as error:
        raise ConfigError(
            "model: expected transformers 5.24 or later to read GGUF files, found an older one"
        ) from error
    return frozenset(GGUF_PRE_TOKENIZER_SPLITS)


def _convert(file: Path, header: GgufHeader, out: Path) -> None:
    alone = out.parent / "file"  # without whatever lies beside it, such as an adapter
    alone.mkdir()
    (alone / _NAME).symlink_to(file.resolve())
    options: dict[str, Any] = {"gguf_file": _NAME, "local_files_only": True}
    with _errors(file), quiet_transformers():
        model: Any = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32, **options)
        tokenizer: Any = AutoTokenizer.from_pretrained(alone, **options)
        if header.text("tokenizer.ggml.pre") in _BY_DIGIT:
            inner, digits = tokenizer.backend_tokenizer, pre_tokenizers.Digits(individual_digits=True)
            inner.pre_tokenizer = pre_tokenizers.Sequence([digits, inner.pre_tokenizer])
        model.hf_quantizer = None  # all values are plain numbers by now
        del model.config.quantization_config
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


@contextmanager
def _errors(file: Path) -> Iterator[None]:
    """What transformers says of a file that it can't read, in one line."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise CompileError(f"{file}: transformers can't read it: {first_line(error)}") from error

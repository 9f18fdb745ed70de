"""``model/``: configuration and tokenizer, which transformers will read; nothing in it may run code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weightpager.bundle.files import check_file, read_checked
from weightpager.bundle.manifest import Manifest
from weightpager.bundle.reader import MODEL, Bundle, entry_of
from weightpager.errors import BundleFormatError

_MOST = {
    "max_position_embeddings": 2**24,
    "num_attention_heads": 2**12,
    "num_hidden_layers": 2**9,
    "num_labels": 2**16,
    "vocab_size": 2**24,
}
"""Beyond these a configuration asks transformers for memory or time that no honest model needs."""

_MOST_STAGES = 64

_ATTENTION = (None, "eager", "sdpa")
"""Other implementations are packages, or code from a hub."""

_ALLOWED: dict[str, tuple[object, ...]] = {
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "chunk_size_feed_forward": (0,),
    "output_attentions": (None, False, True),
    "output_hidden_states": (None, False, True),
    "return_dict": (None, True),
}
"""With anything else a module would be built, and its first forward would fail."""

GENERATION = "generation_config.json"

GENERATION_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
)
"""What a bundle says of how its decoders go on. What else transformers knows asks for more memory, time or code."""


def model_dir(bundle: Bundle) -> Path:
    """The directory, every file of it checked.

    Raises:
        BundleFormatError: a file is damaged, not listed, asks for code from elsewhere, or for absurd sizes.
    """
    for name in extra_files(bundle.path, bundle.manifest):
        raise unlisted(name)
    for name in model_files(bundle.manifest):
        check_model_file(bundle.path, bundle.manifest, name)
    return bundle.path / MODEL


def model_files(manifest: Manifest) -> list[str]:
    """Names of the files that are there, or should be: without a configuration, transformers would look elsewhere."""
    return sorted({name for name in manifest.files if name.startswith(f"{MODEL}/")} | {f"{MODEL}/config.json"})


def extra_files(root: Path, manifest: Manifest) -> Iterator[str]:
    """Names of what is there and not listed."""
    for path in sorted((root / MODEL).rglob("*")):
        name = path.relative_to(root).as_posix()
        # Not only ordinary files: transformers would open a FIFO, or find files behind a link to a directory.
        if name not in manifest.files and (path.is_symlink() or not path.is_dir()):
            yield name


def unlisted(name: str) -> BundleFormatError:
    """The error about an extra file."""
    return BundleFormatError(name, "file", "only files that the manifest lists", "an extra file; remove it")


def check_model_file(root: Path, manifest: Manifest, name: str) -> None:
    """Compare a file with its entry, and see that it asks for nothing that it may not.

    Raises:
        BundleFormatError: as `model_dir`.
    """
    entry = entry_of(manifest, name)
    if name.endswith(".json"):
        _check_json(name, read_checked(root, name, entry))
    else:
        check_file(root, name, entry)


def _check_json(name: str, content: bytes) -> None:
    try:
        values: Any = json.loads(content, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise BundleFormatError(name, "content", "JSON", error) from error
    if not isinstance(values, dict):
        return
    if name == f"{MODEL}/{GENERATION}" and (others := values.keys() - set(GENERATION_KEYS)):
        raise BundleFormatError(name, "keys", f"only {', '.join(GENERATION_KEYS)}", ", ".join(sorted(others))[:80])
    if "auto_map" in values:
        raise BundleFormatError(name, "auto_map", "no code from elsewhere", "auto_map")
    for key, allowed in _ALLOWED.items():
        if key in values and values[key] not in allowed:
            expected = " or ".join(json.dumps(value) for value in allowed)
            raise BundleFormatError(name, key, expected, repr(values[key])[:80])
    for key, most in _MOST.items():
        size = values.get(key, 1)
        sizes = size if isinstance(size, list) else [size]  # models in stages have one for each
        if len(sizes) > _MOST_STAGES or not all(isinstance(one, int) and 0 < one <= most for one in sizes):
            raise BundleFormatError(name, key, f"1 to {most}", repr(size)[:80])


def _constant(name: str) -> float:
    """Infinity is a limit in some configurations; NaN gets past every check of a range."""
    if name == "NaN":
        raise ValueError("expected numbers, found NaN")
    return float(name)

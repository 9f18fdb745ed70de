"""Changing a bundle as somebody would who means harm: with hashes that fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from safetensors.numpy import load, save
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from weightpager.bundle.format.names import MANIFEST, MANIFEST_HASH
from weightpager.bundle.format.page_file import FILE as PAGE_INDEX

Arrays = dict[str, npt.NDArray[Any]]


def replace(path: Path, content: bytes) -> None:
    """Give a file other bytes; never through a hard link, which would change another bundle."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def entry(content: bytes) -> dict[str, Any]:
    """What the manifest says of a file with these bytes."""
    return {"bytes": len(content), "blake3": blake3(content).hexdigest()}


def seal_manifest(bundle: Path, text: bytes) -> None:
    """Write these bytes as the manifest, and their hash."""
    replace(bundle / MANIFEST, text)
    replace(bundle / MANIFEST_HASH, blake3(text).hexdigest().encode() + b"\n")


def rewrite_manifest(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((bundle / MANIFEST).read_bytes())
    change(content)
    seal_manifest(bundle, json.dumps(content).encode())


def rewrite_file(bundle: Path, name: str, content: bytes) -> None:
    """Change a file and its entry, or add it."""
    replace(bundle / name, content)
    rewrite_manifest(bundle, lambda manifest: manifest["files"].update({name: entry(content)}))


def remove_file(bundle: Path, name: str) -> None:
    """Remove a file and its entry."""
    (bundle / name).unlink()
    rewrite_manifest(bundle, lambda manifest: manifest["files"].pop(name))


def rewrite_arrays(bundle: Path, name: str, change: Callable[[Arrays], object]) -> None:
    arrays = {key: value.copy() for key, value in load((bundle / name).read_bytes()).items()}
    change(arrays)
    rewrite_file(bundle, name, save(arrays))


def rewrite_tensors(bundle: Path, name: str, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a parameter file: numpy has no bfloat16."""
    tensors = load_tensors((bundle / name).read_bytes())
    change(tensors)
    rewrite_file(bundle, name, save_tensors(tensors))


def rewrite_pages(bundle: Path, name: str, first: int, content: bytes) -> None:
    """Change a page file, whose page 0 has index ``first``, and the ids of its pages; its size must stay."""
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    size = manifest["page_bytes"]
    start = 8 + int.from_bytes((bundle / name).read_bytes()[:8], "little")
    replace(bundle / name, content)
    pages = [content[at : at + size] for at in range(start, len(content), size)]
    ids = np.array([list(blake3(page).digest()) for page in pages], np.uint8)
    rewrite_arrays(bundle, PAGE_INDEX, lambda arrays: arrays["ids"].__setitem__(slice(first, first + len(ids)), ids))

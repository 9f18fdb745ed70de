"""Files that grow by a hole, with an entry of their new size: they cost nothing to store."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from blake3 import blake3

from benchmarks.fuzz.sealing import Arrays, replace, rewrite_arrays, rewrite_manifest
from weightpager.bundle.format import page_file
from weightpager.bundle.format.names import MANIFEST
from weightpager.bundle.format.page_file import FILE as PAGE_INDEX

_SIZES = (2**21, 3 * 2**20, 2**26, 3 * 2**30, 2**40)
_HASHED = 2**22
"""Holes up to this size get a hash that fits: it takes time to compute."""

_PAGES = (2**10, 2**16, 3 * 2**30 // 44, 2**30)


def change(bundle: Path, random: Random) -> tuple[str, bool]:
    """Let a file grow; what was done in words, and whether its hash fits."""
    files = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    name = random.choice([*files, PAGE_INDEX, "resident.safetensors"])
    size = random.choice(_SIZES)
    if name.startswith("manifest."):
        _grow(bundle, name, size)
        return f"{name}: a hole up to {size} bytes", False
    if name.startswith("pages-"):
        return _pages(bundle, name, random), True
    if name == PAGE_INDEX and random.random() < 0.5:
        return _index(bundle, random), False
    words = "a hole"
    if name.endswith(".safetensors") and random.random() < 0.6:
        size, words = _tensor(bundle, name, size, random)
    else:
        _grow(bundle, name, size)
    return f"{name}: {words} up to {size} bytes", _state(bundle, name, size)


def _grow(bundle: Path, name: str, size: int, content: bytes | None = None) -> None:
    replace(bundle / name, (bundle / name).read_bytes() if content is None else content)
    os.truncate(bundle / name, size)


def _state(bundle: Path, name: str, size: int) -> bool:
    """Have the manifest state the file's size; whether the hash fits."""
    fits = size <= _HASHED
    digest = blake3((bundle / name).read_bytes()).hexdigest() if fits else "0" * 64
    rewrite_manifest(bundle, lambda manifest: manifest["files"].update({name: {"bytes": size, "blake3": digest}}))
    return fits


def _tensor(bundle: Path, name: str, size: int, random: Random) -> tuple[int, str]:
    """Have the hole be a tensor, as the header states it: one more, or the last one."""
    content = (bundle / name).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    end = len(content) - 8 - length
    grown = (size - end) // 4096 * 4096
    last = max(header, key=lambda key: header[key]["data_offsets"][1], default=None)
    if last is not None and random.random() < 0.5:
        begin = header[last]["data_offsets"][0]
        header[last] |= {"dtype": "U8", "shape": [end + grown - begin], "data_offsets": [begin, end + grown]}
    else:
        last = random.choice(["x", "base_model.x", "classifier.weight"])
        dtype, width = random.choice([("F32", 4), ("U8", 1), ("BF16", 2), ("I32", 4)])
        header[last] = {"dtype": dtype, "shape": [grown // width], "data_offsets": [end, end + grown]}
    text = json.dumps(header).encode()
    body = content[8 + length :]
    _grow(bundle, name, 8 + len(text) + end + grown, len(text).to_bytes(8, "little") + text + body)
    return 8 + len(text) + end + grown, f"a hole as {last}"


def _index(bundle: Path, random: Random) -> str:
    """Have index and page file be of very many pages, all counts fitting."""
    pages = random.choice(_PAGES)
    entries, end = {}, 0
    for name, dtype, shape, width in (
        ("signatures", "U64", [pages], 8),
        ("layers", "I32", [pages], 4),
        ("ids", "U8", [pages, 32], 32),
    ):
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + pages * width]}
        end += pages * width
    text = json.dumps(entries).encode()
    _grow(bundle, PAGE_INDEX, 8 + len(text) + end, len(text).to_bytes(8, "little") + text)
    _state(bundle, PAGE_INDEX, 8 + len(text) + end)
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    for number in range(len(manifest["page_files"])):
        (bundle / page_file.file_name(number)).unlink()
    page_file.frame(bundle / page_file.file_name(0), pages, manifest["page_bytes"])
    rewrite_manifest(bundle, lambda content: content.update(page_files=[pages]))
    return f"{PAGE_INDEX}: {pages} pages in a hole"


def _pages(bundle: Path, name: str, random: Random) -> str:
    """Have a page file end in pages of zeros, with ids that fit: of no task, as after `gc` they would not be."""
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    size, number, added = manifest["page_bytes"], int(name[6:10]), random.choice([1, 100, 10_000])
    counts = manifest["page_files"]
    end = sum(counts[: number + 1])
    zero = np.frombuffer(blake3(bytes(size)).digest(), np.uint8)
    task = random.choice([0, 0, 1])

    def grow(arrays: Arrays) -> None:
        layer = arrays["layers"][end - 1] if end else 0
        more = {"ids": np.tile(zero, (added, 1)), "layers": np.full(added, layer, np.int32)}
        more["signatures"] = np.full(added, task, np.uint64)
        for key, values in more.items():
            arrays[key] = np.concatenate([arrays[key][:end], values, arrays[key][end:]])

    rewrite_arrays(bundle, PAGE_INDEX, grow)
    content = (bundle / name).read_bytes()
    start = len(page_file.header(counts[number], size))
    counts[number] += added
    header = page_file.header(counts[number], size)
    _grow(bundle, name, len(header) + counts[number] * size, header + content[start:])
    rewrite_manifest(bundle, lambda changed: changed.update(page_files=counts))
    return f"{name}: {added} pages of zeros more, signature {task}"

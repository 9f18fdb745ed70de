"""Changes of what a bundle's directory holds, of files that must fit each other, and of sizes: holes cost nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from benchmarks.fuzz.sealing import (
    Arrays,
    entry,
    replace,
    rewrite_arrays,
    rewrite_file,
    rewrite_manifest,
    rewrite_tensors,
)
from weightpager.bundle.format import page_file
from weightpager.bundle.format.names import MANIFEST
from weightpager.bundle.format.page_file import FILE as PAGE_INDEX

_EXTRA = (
    "model/tokenizer.model", "model/special_tokens_map.json", "model/added_tokens.json", "model/vocab.txt",
    "model/chat_template.jinja", "model/generation_config.json", "model/modeling_x.py", "model/sub/x.json",
    "model/chat_templates/x.jinja", "model/merges.txt", "x", "placement.safetensors", "pages-0001.safetensors",
    "permutations.safetensors", "model/\udcff", "model/a\nb",
)  # fmt: skip

_SPECIAL = ("fifo", "socket", "directory", "loop", "dangling", "outside", "zero", "null", "to directory", "empty")


def change_files(bundle: Path, random: Random) -> tuple[str, bool]:
    """Change the directory; what was done in words, and whether hashes were recomputed for it."""
    kind = random.choice(["missing", "extra", "special", "special", "special", "locked", "huge", "folder", "rename"])
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    path = random.choice(files)
    name = path.relative_to(bundle).as_posix()
    if kind == "extra":
        return _extra(bundle, random)
    if kind == "folder":
        return _folder(bundle, random), False
    if kind == "missing":
        path.unlink()
    elif kind == "locked":
        content = path.read_bytes()
        path.unlink()  # a mode belongs to all hard links
        path.write_bytes(content)
        path.chmod(0)
    elif kind == "rename":
        path.rename(path.with_name(path.name.upper()))
    elif kind == "huge":
        path.unlink()
        with path.open("wb") as file:
            file.truncate(1 << random.choice([32, 40, 42]))
    else:
        return _special(bundle, path, name, random)
    return f"{kind} {name}", False


def _special(bundle: Path, path: Path, name: str, random: Random) -> tuple[str, bool]:
    kind = random.choice(_SPECIAL)
    path.unlink()
    _make(path, kind)
    sealed = random.random() < 0.5
    if sealed:
        rewrite_sealed(bundle, name)
    return f"{kind} in place of {name}{', with an entry that fits' if sealed else ''}", sealed


def rewrite_sealed(bundle: Path, name: str) -> None:
    """Have the manifest say that a file is empty, as what is no ordinary file seems to be."""
    if not name.startswith("manifest."):
        rewrite_manifest(bundle, lambda manifest: manifest["files"].update({name: entry(b"")}))


def _extra(bundle: Path, random: Random) -> tuple[str, bool]:
    name, kind = random.choice(_EXTRA), random.choice([*_SPECIAL, "text", "text"])
    path = bundle / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        path.unlink()
    _make(path, kind)
    sealed = random.random() < 0.3 and "\udcff" not in name
    if sealed:
        content = b"{}" if kind == "text" else b""
        rewrite_manifest(bundle, lambda manifest: manifest["files"].update({name: entry(content)}))
    return f"extra {kind} {name!r}{', with an entry' if sealed else ''}", sealed


def _folder(bundle: Path, random: Random) -> str:
    path = random.choice([*sorted(path for path in bundle.rglob("*") if path.is_dir()), bundle / "tasks", bundle])
    kind = random.choice(["gone", *_SPECIAL])
    name = path.relative_to(bundle).as_posix()
    shutil.rmtree(path)
    if kind != "gone":
        _make(path, kind)
    return f"folder {name} is {kind}"


def _make(path: Path, kind: str) -> None:
    targets = {"loop": path.name, "dangling": "nowhere", "outside": "/etc/passwd", "zero": "/dev/zero"}
    targets |= {"null": "/dev/null", "to directory": "/etc"}
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        _socket(path)
    elif kind == "directory":
        path.mkdir()
    elif kind in targets:
        path.symlink_to(targets[kind])
    else:
        path.write_bytes(b"{}" if kind == "text" else b"")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # A socket's path may have 107 bytes only.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


_DIMENSIONS_STATED = ("out_features", "in_features", "rows", "columns", "layer")
_FLOATS = (torch.float32, torch.bfloat16)


def change_fit(bundle: Path, random: Random) -> str:
    """Change one part of a bundle and all hashes; what was done in words."""
    return random.choice(_CHANGES)(bundle, random)


def _classes(bundle: Path, random: Random) -> str:
    """More, fewer or no names of classes."""
    words = []

    def other(manifest: dict[str, Any]) -> None:
        task = random.choice(manifest["tasks"])
        names = task["classes"]
        task["classes"] = random.choice([names[:-1], names[1:], [*names, "more"], names[:1], [*names, *names]])
        words.append(f"manifest.json: classes of {task['name']}: {task['classes']} in place of {names}")

    rewrite_manifest(bundle, other)
    return words[0]


def _sizes(bundle: Path, random: Random) -> str:
    """Other sizes of weights and tables."""
    words = []

    def other(manifest: dict[str, Any]) -> None:
        kind = random.choice([key for key in ("weights", "row_tables", "whole_weights") if manifest.get(key)])
        entry = random.choice(manifest[kind])
        size = random.choice([key for key in entry if key in _DIMENSIONS_STATED])
        entry[size] = max(0, entry[size] + random.choice([-16, -1, 1, 16]))
        words.append(f"manifest.json: {kind}: {size} of {entry['name']} becomes {entry[size]}")

    rewrite_manifest(bundle, other)
    return words[0]


def _parameter(bundle: Path, random: Random) -> str:
    """A parameter that is gone, or has another shape, dtype or name."""
    files = ["resident.safetensors", *(str(path.relative_to(bundle)) for path in bundle.glob("tasks/*/private.*"))]
    file, words = random.choice(files), []

    def other(tensors: dict[str, Tensor]) -> None:
        if not tensors:
            words.append(f"{file}: unchanged")
            return
        name = random.choice(sorted(tensors))
        kind = random.choice(sorted(_OTHERS))
        words.append(f"{file}: {name} {list(tensors[name].shape)}: {kind}")
        changed = _OTHERS[kind](tensors.pop(name))
        if changed is not None:
            tensors[name] = changed.contiguous()

    rewrite_tensors(bundle, file, other)
    return words[0]


def _grown(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor[None]


def _other_dtype(tensor: Tensor) -> Tensor:
    return tensor.to(torch.int64) if tensor.dtype in _FLOATS else tensor.to(torch.float32)


_OTHERS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "gone": lambda _: None,
    "a row less": lambda tensor: tensor[:-1],
    "a row more": _grown,
    "one row": lambda tensor: tensor[:1],
    "a column less": lambda tensor: tensor[..., :-1],
    "turned": lambda tensor: tensor.T if tensor.ndim == 2 else tensor,
    "flat": lambda tensor: tensor.reshape(-1),
    "an axis more": lambda tensor: tensor[None],
    "another dtype": _other_dtype,
}


def _graph(bundle: Path, random: Random) -> str:
    """Another parameter, value or number in a graph."""
    file = random.choice(sorted(bundle.glob("model/graph-*.json")))
    graph = json.loads(file.read_bytes())
    node = random.choice(graph["nodes"])
    before = json.dumps(node)
    kind = random.choice(["operand", "operand", "number", "outputs"])
    if kind == "operand" and node["inputs"]:
        at = random.randrange(len(node["inputs"]))
        others = [each for other in graph["nodes"] for each in other["inputs"]]
        node["inputs"][at] = random.choice(others)
    elif kind == "number" and node["attributes"]:
        name = random.choice(sorted(node["attributes"]))
        node["attributes"][name] = _other_number(node["attributes"][name], random)
    else:
        output = random.choice(graph["outputs"])
        output["value"] = random.choice(node["outputs"])
        before = json.dumps(output["name"])
    name = file.relative_to(bundle).as_posix()
    rewrite_file(bundle, name, json.dumps(graph, sort_keys=True, separators=(",", ":")).encode())
    return f"{name}: {kind} of {before[:200]}"


def _other_number(value: Any, random: Random) -> Any:
    if isinstance(value, list) and value:
        at = random.randrange(len(value))
        return [*value[:at], _other_number(value[at], random), *value[at + 1 :]]
    if isinstance(value, bool):
        return not value
    return value + random.choice([-1, 1, 2]) if isinstance(value, int) else value


def _tokenizer(bundle: Path, random: Random) -> str:
    """A tokenizer with other tokens than the model has, or that is none."""
    file = bundle / "model/tokenizer.json"
    if not file.is_file():
        return _classes(bundle, random)
    content = json.loads(file.read_bytes())
    vocabulary = content["model"].get("vocab", {})
    kind = random.choice(["token", "number", "model", "processor"])
    if kind == "token" and isinstance(vocabulary, dict):
        vocabulary[f"more{random.randrange(9)}"] = random.choice([len(vocabulary), 10**6, 2**32 - 1])
    elif kind == "number" and isinstance(vocabulary, dict):
        vocabulary[random.choice(sorted(vocabulary))] += random.choice([1, 1000])
    elif kind == "model":
        content["model"]["type"] = random.choice(["BPE", "WordPiece", "WordLevel", "Unigram", "None"])
    else:
        content["post_processor"] = random.choice([None, {}, {"type": "BertProcessing", "sep": ["x", 1]}])
    rewrite_file(bundle, "model/tokenizer.json", json.dumps(content).encode())
    return f"model/tokenizer.json: another {kind}"


_CHANGES: list[Callable[[Path, Random], str]]
_CHANGES = [_classes, _sizes, _parameter, _parameter, _graph, _graph, _tokenizer]


_SIZES = (2**21, 3 * 2**20, 2**26, 3 * 2**30, 2**40)
_HASHED = 2**22
"""Holes up to this size get a hash that fits: it takes time to compute."""

_PAGES = (2**10, 2**16, 3 * 2**30 // 44, 2**30)


def grow(bundle: Path, random: Random) -> tuple[str, bool]:
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

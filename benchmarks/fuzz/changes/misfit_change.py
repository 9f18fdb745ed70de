"""Changes after which each file of a bundle is sound by itself, and doesn't fit the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from benchmarks.fuzz.sealing import rewrite_file, rewrite_manifest, rewrite_tensors

_SIZES = ("out_features", "in_features", "rows", "columns", "layer")
_FLOATS = (torch.float32, torch.bfloat16)


def change(bundle: Path, random: Random) -> str:
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
        size = random.choice([key for key in entry if key in _SIZES])
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

"""What a graph's weights may be, and a graph compared with its module, on values that are made up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from weightpager.backends.torch.pictures import features_of, window_of, with_features
from weightpager.bundle.format.manifest import PatchRuns
from weightpager.compiler.graph.builder import CallForm
from weightpager.compiler.model.paged_weights import parameters, replace_tensors
from weightpager.errors import NotExportableError
from weightpager.graph import Graph
from weightpager.graph.file import FEATURES
from weightpager.graph.graph import Array
from weightpager.graph.operators import OPERATORS, WEIGHTS
from weightpager.graph.reference import KeyValues, run
from weightpager.readers.patch_processor import Grid, tower_inputs

_TOLERANCE = 1e-4
"""What an output may be off, as a share of the largest one; a wrong mask or a wrong norm is off by far more."""

_SHAPES = ((2, 7), (1, 1))
"""Texts and tokens of the inputs that are tried. Of the first, the last text is padded."""

_TRIED: Mapping[tuple[str, ...], tuple[tuple[int, int], ...]] = {("batch",): ((2, 0),), ("length",): ((1, 77), (1, 1))}
"""The same where no texts are read: of images, and of a picture's places, in several windows that aren't all whole."""


_ROWS, _PLACES = 3, (0, -1, 2, -1, -1, 2, 1, -1)
"""Rows of features, and where they stand in texts."""


def check_weights(graph: Graph) -> None:
    """Refuse tables and weights that aren't parameters as they are stored, which devices may hold as blocks or rows.

    Raises:
        NotExportableError: one is a view of a parameter, or computed.
    """
    makers = {name: node.op for node in graph.nodes for name in node.outputs}
    for node in graph.nodes:
        for at in WEIGHTS.get(node.op, ()):
            operand = node.inputs[at]
            if operand is None or operand.kind in ("parameter", "constant"):
                continue
            name, made = OPERATORS[node.op].inputs[at], makers.get(str(operand.key), "no operator")
            raise NotExportableError(
                f"{node.op} with a {name} that isn't a parameter as it is stored, but made by {made}"
            )


def check_graph(graph: Graph, module: PreTrainedModel, form: CallForm) -> None:
    """Run a graph and its module, and a language model's graph in two pieces as well.

    The module has no values, and is given some here: matrices of one width share memory.

    Raises:
        NotExportableError: they differ.
    """
    give_values(module)
    values = {name: np.asarray(tensor.detach()) for name, tensor in parameters(module).items()}
    for texts, tokens in _TRIED.get(form.dims, _SHAPES):
        inputs = made_up(form, module, texts, tokens)
        found, wanted = run(graph, values, inputs)[form.outputs[0]], result(module, form, inputs)
        seen = _seen(inputs, wanted)
        _compare(found[seen], wanted[seen], "its module")
        if "position_ids" in inputs and tokens > 1:
            _compare(in_pieces(graph, values, inputs, (tokens - 2, tokens))[seen], wanted[seen], "itself in two pieces")


def result(module: PreTrainedModel, form: CallForm, inputs: Mapping[str, Array]) -> Array:
    """What the module makes of inputs: the first of the form's outputs."""
    if form.kind != FEATURES:
        return logits(module, inputs)
    pixels = inputs["pixel_values"]
    with torch.inference_mode():
        if form.dims != ("length",):
            return np.asarray(features_of(module, torch.from_numpy(pixels)))
        grid = grid_of(len(pixels))
        _, order = tower_inputs(pixels, grid, _runs(module))
        order = np.arange(len(pixels)) if order is None else order
        return np.asarray(features_of(module, torch.from_numpy(pixels[np.argsort(order)]), grid))[order]


def _runs(module: PreTrainedModel) -> PatchRuns:
    vision: Any = module.config.vision_config
    return PatchRuns(merge=vision.spatial_merge_size, window=window_of(vision))


def logits(module: PreTrainedModel, inputs: Mapping[str, Array]) -> Array:
    """A module's logits for the inputs of its kind."""
    with torch.inference_mode():
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        if "features" in given:
            placed = given.pop("input_ids"), given.pop("features"), given.pop("feature_index")
            given["inputs_embeds"] = with_features(module, *placed)
        return np.asarray(module(**given).logits)


def in_pieces(graph: Graph, values: Mapping[str, Array], inputs: Mapping[str, Array], ends: tuple[int, ...]) -> Array:
    """A language model's logits, of calls that each bring the tokens up to an end."""
    cache, pieces, start = KeyValues(), [], 0
    for end in ends:
        piece = {name: value if name == "features" else value[..., start:end] for name, value in inputs.items()}
        piece["attention_mask"] = inputs["attention_mask"][:, :end]
        pieces.append(run(graph, values, piece, cache)["logits"])
        start = end
    return np.concatenate(pieces, 1)


def made_up(form: CallForm, module: PreTrainedModel, texts: int, tokens: int) -> dict[str, Array]:
    """Inputs of some size, the same for the same size; of several texts the last is padded on the right."""
    rng = np.random.default_rng(0)
    if form.dims == ("length",):
        shape = [tokens if size == "length" else int(size) for size in form.inputs[0].shape]
        pixels = rng.normal(size=shape).astype(np.float32)
        return tower_inputs(pixels, grid_of(tokens), _runs(module))[0]
    if form.dims == ("batch",):
        shape = [texts if size == "batch" else int(size) for size in form.inputs[0].shape]
        return {form.inputs[0].name: rng.normal(size=shape).astype(np.float32)}
    config: Any = module.config.get_text_config()
    padding = getattr(config, "pad_token_id", None)
    words = [word for word in rng.integers(0, config.vocab_size, 2 * texts * tokens + 2) if word != padding]
    ids = np.resize(np.array(words, np.int64), (texts, tokens))
    mask = np.ones((texts, tokens), np.int64)
    if texts > 1:
        mask[-1, tokens - tokens // 3 :] = 0
        ids[mask == 0] = 0 if padding is None else padding
    positions = np.broadcast_to(np.arange(tokens), (texts, tokens)).copy()
    if any(each.name == "position_ids" and len(each.shape) == 3 for each in form.inputs):
        positions = np.stack([positions, positions // 2, positions % 3])
    made = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    if "features" in form.dims:
        made["features"] = rng.normal(size=(_ROWS, int(form.inputs[-1].shape[-1]))).astype(np.float32)
        made["feature_index"] = np.resize(np.array(_PLACES), (texts, tokens))
    return {each.name: made[each.name] for each in form.inputs}


def grid_of(places: int) -> Grid:
    """Rows and columns of a picture of so many places: as many of both as it may have."""
    rows = next(each for each in range(math.isqrt(places), 0, -1) if places % each == 0)
    return rows, places // rows


def give_values(module: PreTrainedModel) -> None:
    """Random values for all parameters, such that activations stay of the size of 1; ties stay ties."""
    generator = torch.Generator().manual_seed(0)
    largest: dict[int, int] = {}
    for tensor in parameters(module).values():
        if tensor.is_floating_point() and tensor.ndim > 1:
            width = tensor[0].numel()
            largest[width] = max(largest.get(width, 0), tensor.numel())
    pools = {width: torch.randn(count + 2**16, generator=generator) * width**-0.5 for width, count in largest.items()}
    made: dict[int, Tensor] = {}
    for number, (name, tensor) in enumerate(parameters(module).items()):
        if not tensor.is_floating_point():
            continue
        if tensor.ndim > 1:
            begin = number * 97 % 2**16  # else two matrices of one shape would be the same
            value = pools[tensor[0].numel()][begin : begin + tensor.numel()].view(tensor.shape)
        else:
            value = 0.2 * torch.randn(tensor.shape, generator=generator) + float(name.endswith("weight"))
        made[id(tensor)] = (
            torch.nn.Parameter(value, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else value
        )
    replace_tensors(module, made)


def _seen(inputs: Mapping[str, Array], wanted: Array) -> Any:
    """Which outputs count: those of tokens that aren't padding."""
    per_token = "attention_mask" in inputs and wanted.ndim == 3
    return inputs["attention_mask"] != 0 if per_token else slice(None)


def _compare(found: Array, wanted: Array, other: str) -> None:
    off = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else np.inf
    limit = _TOLERANCE * max(float(np.abs(wanted).max()), 1e-3)
    if not off <= limit:  # a NaN is refused, too
        raise NotExportableError(f"a graph that differs from {other} by {off:.2g}, more than {limit:.2g}")

"""`Builder`: nodes put together one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from transformers import PreTrainedModel

from weightpager.backends.torch.architecture import takes_tiles
from weightpager.backends.torch.pictures import projected, window_of, with_features
from weightpager.bundle.format.manifest import FORMS, TaskKind
from weightpager.errors import NotExportableError
from weightpager.graph import Graph, GraphInput, Node, Operand
from weightpager.graph.file import FEATURES
from weightpager.graph.graph import Array
from weightpager.graph.operators import DIMENSION_LISTS, DIMENSIONS

Size = int | str | None
"""The size of an axis: a number, a dimension that a call states, or unknown."""


@dataclass(frozen=True)
class Type:
    """What is known of a value: the sizes of its axes, and its dtype."""

    shape: tuple[Size, ...]
    dtype: str


@dataclass(frozen=True)
class Draft:
    """A graph, and the types of its nodes' values by name; of inputs, parameters and constants by their operand."""

    graph: Graph
    types: Mapping[Operand, Type]


_DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.int32: "int64", torch.bool: "bool"}


@dataclass(frozen=True)
class Value:
    """Where something comes from, and what is known of it."""

    operand: Operand
    type: Type

    @property
    def shape(self) -> tuple[Size, ...]:
        """Sizes of its axes."""
        return self.type.shape

    @property
    def dtype(self) -> str:
        """Name of its dtype."""
        return self.type.dtype


class Builder:
    """Nodes and constants so far.

    Args:
        dims: a traced size's symbol → the dimension that it is.
        classes: the size that stands for the number of a task's classes: a graph must not depend on it.
    """

    def __init__(self, dims: dict[str, str], classes: int) -> None:
        self.dims, self.classes = dims, classes
        self.nodes: list[Node] = []
        self.constants: list[Array] = []
        self.types: dict[Operand, Type] = {}

    def size(self, traced: object) -> Size:
        """A traced size: a number, a dimension, or unknown."""
        if isinstance(traced, int):
            return None if traced == self.classes else traced
        return self.dims.get(str(traced))

    def type_of(self, tensor: Tensor) -> Type:
        """What is known of a traced tensor. Raises `NotExportableError` if graphs have no such dtype."""
        if tensor.dtype not in _DTYPES:
            raise NotExportableError(f"values of {tensor.dtype}")
        return Type(tuple(self.size(each) for each in tensor.shape), _DTYPES[tensor.dtype])

    def given(self, operand: Operand, type_: Type) -> Value:
        """An input or a parameter."""
        self.types[operand] = type_
        return Value(operand, type_)

    def constant(self, array: Array) -> Value:
        """A constant of the graph; whole numbers become int64, others float32."""
        kind = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float32}[array.dtype.kind]
        self.constants.append(np.ascontiguousarray(array, kind))
        type_ = Type(tuple(array.shape), str(np.dtype(kind)))
        return self.given(Operand.constant(len(self.constants) - 1), type_)

    def emit(self, op: str, inputs: Sequence[Value | None], attributes: dict[str, Any], type_: Type) -> Value:
        """A new node; its value."""
        name = f"v{len(self.nodes)}"
        operands = tuple(None if each is None else each.operand for each in inputs)
        self.nodes.append(Node(op, operands, attributes, (name,)))
        return self.given(Operand.value(name), type_)

    def cast(self, value: Value, dtype: str) -> Value:
        """A value in another dtype."""
        if value.dtype == dtype:
            return value
        return self.emit("cast", [value], {"dtype": dtype}, Type(value.shape, dtype))

    def reshaped(self, value: Value, shape: tuple[Size, ...]) -> Value:
        """A value's elements in another shape, at most one size of which is unknown."""
        if shape == value.shape:
            return value
        return self.emit("reshape", [value], {"shape": stated(shape, 1)}, Type(shape, value.dtype))

    def cut(self, value: Value, axis: int, start: Any, end: Any, step: int = 1) -> Value:
        """A slice along an axis; ``end`` None for the rest."""
        size = value.shape[axis]
        whole = end is None or end == size or (isinstance(end, int) and isinstance(size, int) and end >= size)
        if start == 0 and step == 1 and whole:
            return value
        shape = list(value.shape)
        if all(isinstance(each, int) for each in (size, start)) and (end is None or isinstance(end, int)):
            shape[axis] = len(range(int(size or 0))[start:end:step])
        else:
            shape[axis] = end if start == 0 and step == 1 and isinstance(end, str) else None
        attributes = {"axis": axis, "start": start, "end": None if whole else end, "step": step}
        return self.emit("slice", [value], attributes, Type(tuple(shape), value.dtype))


def stated(shape: tuple[Size, ...], unknown: int) -> list[int | str]:
    """A shape as an attribute states it: −1 for what is unknown. Raises `NotExportableError` if too much is."""
    if shape.count(None) > unknown:
        raise NotExportableError(f"a shape of which {shape.count(None)} sizes depend on batch, length or classes")
    return [-1 if each is None else each for each in shape]


def traced_type(builder: Builder, node: fx.Node) -> Type:
    """What a trace says of a node's value."""
    return builder.type_of(node.meta["val"])


_TEXT = ("input_ids", "attention_mask")
_PER_TOKEN = DIMENSIONS[:2]


@dataclass(frozen=True)
class CallForm:
    """What a module of a kind of tasks is called with.

    ``kind`` is `FEATURES` where it is asked for pictures' features.
    """

    kind: str
    inputs: tuple[GraphInput, ...]

    @classmethod
    def of(cls, kind: TaskKind, image: tuple[int, int, int] | None = None) -> CallForm:
        """The form of a kind of tasks; ``image`` is channels, height and width of images, None where tasks read texts.

        Raises:
            NotExportableError: images have no known size.
        """
        if FORMS[kind].images:
            if image is None:
                raise NotExportableError("images of no fixed size")
            return cls(kind, (GraphInput("pixel_values", "float32", ("batch", *image)),))
        names = (*_TEXT, "position_ids") if FORMS[kind].writes else _TEXT
        return cls(kind, tuple(GraphInput(name, "int64", _PER_TOKEN) for name in names))

    @classmethod
    def of_pictures(cls, image: tuple[int, int, int] | None) -> CallForm:
        """The form of a call that gives pictures' features; ``image`` is channels, height and width of pictures.

        Raises:
            NotExportableError: they have no known size.
        """
        if image is None:
            raise NotExportableError("pictures of no fixed size")
        return cls(FEATURES, (GraphInput("pixel_values", "float32", ("batch", *image)),))

    @classmethod
    def of_patches(cls, vision: Any) -> CallForm:
        """The form of a call that gives the features of one run of patches; ``vision`` is the tower's configuration."""
        merge, patch = vision.spatial_merge_size**2, vision.temporal_patch_size * vision.patch_size**2
        pixels = GraphInput("pixel_values", "float32", ("length", merge, vision.in_channels * patch))
        windows = (GraphInput("patch_windows", "int64", ("length", merge)),) if window_of(vision) else ()
        return cls(FEATURES, (pixels, GraphInput("patch_positions", "int64", ("length", merge, 2)), *windows))

    @classmethod
    def with_features(cls, kind: TaskKind, width: int, *, by_grid: bool = False) -> CallForm:
        """The form of a kind of tasks that write, where features of this width may stand in the place of tokens.

        ``by_grid`` says whether a token has three positions.
        """
        inputs = cls.of(kind).inputs
        if by_grid:
            threefold = GraphInput("position_ids", "int64", (3, *_PER_TOKEN))
            inputs = tuple(threefold if each.name == threefold.name else each for each in inputs)
        index = GraphInput("feature_index", "int64", _PER_TOKEN)
        return cls(kind, (*inputs, index, GraphInput("features", "float32", ("features", width))))

    @property
    def writes(self) -> bool:
        """Whether texts go on, so that earlier tokens are remembered."""
        return self.kind != FEATURES and FORMS[self.kind].writes  # type: ignore[index]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the module's outputs. What a language model's head reads is found in its graph."""
        if self.kind == FEATURES:
            return ("features",)
        texts = "length" in self.inputs[0].shape
        return ("logits", "hidden") if texts and not self.writes else ("logits",)

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions that a call states."""
        stated = {size for each in self.inputs for size in each.shape if isinstance(size, str)}
        return next(each for each in DIMENSION_LISTS if stated == set(each))

    def tensors(self, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        """Inputs of these sizes, without memory."""
        return tuple(
            torch.empty(
                [sizes[size] if isinstance(size, str) else size for size in each.shape],
                dtype=getattr(torch, each.dtype),
                device="meta",
            )
            for each in self.inputs
        )


class Called(nn.Module):
    """A module with positional inputs, and the form's outputs."""

    def __init__(self, module: PreTrainedModel, form: CallForm) -> None:
        super().__init__()
        self.module, self.form = module, form
        self._hidden: Tensor | None = None
        module.base_model.register_forward_hook(self._keep)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs for inputs in the form's order."""
        named = {each.name: tensor for each, tensor in zip(self.form.inputs, inputs, strict=True)}
        if self.form.kind == FEATURES and "patch_positions" in named:
            return (_features_of_patches(self.module, *inputs),)
        if self.form.kind == FEATURES and takes_tiles(self.module.config):
            return (_features_of_tiles(self.module, *inputs),)
        if self.form.kind == FEATURES:
            # Not as `get_image_features`, which makes a list of them: so many would be all that a trace takes.
            return (projected(self.module, named["pixel_values"]),)
        if "features" in named:
            placed = named.pop("input_ids"), named.pop("features"), named.pop("feature_index")
            named["inputs_embeds"] = with_features(self.module, *placed)
        logits: Tensor = self.module(**named).logits
        hidden, self._hidden = self._hidden, None
        return (logits,) if hidden is None else (logits, hidden)

    def _keep(self, _module: nn.Module, _inputs: object, found: Any) -> None:
        """Note the last hidden states below the head."""
        if "hidden" in self.form.outputs:
            self._hidden = found.last_hidden_state


def number_patches(module: Any) -> None:
    """Give a tower of tiles the numbers of its patches' positions, [1, patches], as it finds them for a whole tile.

    It does so by fractions of a side, which are rounded.
    """
    seen = module.base_model.vision_model.embeddings
    side = seen.num_patches_per_side
    at = torch.clamp(torch.arange(side, dtype=torch.float32) * (1.0 / torch.tensor(side)), max=1.0 - 1e-6)
    place = torch.bucketize(at, torch.arange(1 / side, 1.0, 1 / side), right=True)
    seen.register_buffer("position_ids", (place[:, None] * side + place).reshape(1, -1), persistent=False)


def _features_of_tiles(module: Any, pixels: Tensor) -> Tensor:
    """As the tower's own ``forward`` has it of whole tiles, whose patches have been numbered."""
    base = module.base_model
    tower, seen = base.vision_model, base.vision_model.embeddings
    hidden = seen.patch_embedding(pixels).flatten(2).transpose(1, 2) + seen.position_embedding(seen.position_ids)
    for layer in tower.encoder.layers:
        hidden = layer(hidden, None)
    found: Tensor = base.connector(tower.post_layernorm(hidden))
    return found


def _features_of_patches(module: Any, pixels: Tensor, at: Tensor, windows: Tensor | None = None) -> Tensor:
    """As the tower's own ``forward`` has it, which finds positions and borders by loops over each picture's sides.

    Places come in the order of their windows, and so do their features.
    """
    tower = module.base_model.visual
    hidden = tower.patch_embed(pixels.flatten(0, 1))
    turns = tower.rotary_pos_emb(hidden, at.flatten(0, 1))
    whole = at.new_empty(0)
    for number, block in enumerate(tower.blocks):
        segments = whole
        if windows is not None and number not in tower.fullatt_block_indexes:
            segments = windows.reshape(1, -1)
        hidden = block(hidden, cu_seqlens=segments, position_embeddings=turns)
    found: Tensor = tower.merger(hidden)
    return found

"""`NativeTask`: a task's forward pass, numpy in and numpy out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias, cast

import numpy as np

from weightpager.answers.model import (
    OF_GRIDS,
    CacheSize,
    Floats,
    Grids,
    Integers,
    PlacedFeatures,
    parts_of,
    picture_features,
    positions,
)
from weightpager.backends.native.lowering import Array, Blocks, ProgramParameter
from weightpager.backends.native.program import GraphProgram, KVCache, stages
from weightpager.backends.task_parts import no_arrays
from weightpager.bundle import Bundle, TaskEntry, WeightEntry
from weightpager.bundle.files.tensor_file import Header, TensorInfo
from weightpager.bundle.format.manifest import FORMS, Pictures
from weightpager.bundle.format.names import MANIFEST
from weightpager.bundle.format.row_table import RowTableEntry
from weightpager.bundle.format.whole_weight import WholeWeightEntry, stored_in
from weightpager.errors import BundleFormatError
from weightpager.graph import Graph, GraphOutput, Operand
from weightpager.graph.dropped import replaced, without
from weightpager.graph.file import FEATURES, graph_file
from weightpager.graph.graph import needed
from weightpager.kernels import PagedWeight
from weightpager.kernels.paged_weight import PageGate
from weightpager.kernels.rows import RowSource
from weightpager.page_dtype import PageDtype, block_bytes
from weightpager.readers.patch_processor import tower_inputs


class NativeTask:
    """One task of an open engine, to be called: numpy in, numpy out. Several threads may call it; they take turns.

    Attributes:
        graph: the graph of the task's kind; ``graph.inputs`` and ``graph.outputs`` say what a call takes and gives.
        cache: what keys and values of earlier tokens take, in the model's own width.
    """

    def __init__(
        self,
        name: str,
        graph: Graph,
        programs: tuple[GraphProgram, ...],
        gate: PageGate,
        context: int,
        cache: CacheSize,
        *,
        numbers_by_mask: bool = False,
        features: GraphProgram | None = None,
        pictures: Pictures | None = None,
    ) -> None:
        """Nothing is computed yet.

        Args:
            name: of the task.
            graph: the graph of the task's kind.
            programs: that run it, one after the other: what gives ``hidden``, and what gives ``logits`` of that where
                few of a forward's tokens need any.
            gate: the task's gate.
            context: tokens that the model says it can read.
            cache: as the attribute.
            numbers_by_mask: whether positions, where a call states none, leave out tokens that its mask hides.
            features: gives pictures' features.
            pictures: how these stand in texts; None, as are ``features``, where the task reads none among its words.
        """
        self._name, self.graph, self.cache = name, graph, cache
        self._below, self._head = programs[0], programs[1] if len(programs) > 1 else None
        self._gate = gate
        self._context = context
        self._numbers_by_mask = numbers_by_mask
        self._features, self._pictures = features, pictures

    def __repr__(self) -> str:
        takes, gives = self._takes, [each.name for each in self.graph.outputs]
        return f"<NativeTask {self._name!r}: {self.graph.kind}, {', '.join(takes)} -> {', '.join(gives)}>"

    @property
    def has_head(self) -> bool:
        """Whether `head` gives the logits, of those tokens that need any, and `below` only what it reads."""
        return self._head is not None

    @property
    def _takes(self) -> list[str]:
        own = [each.name for each in self.graph.inputs]
        if self._features is None or self._pictures is None:
            return own
        form, (grids, _, mask, sizes) = self._pictures, OF_GRIDS
        more = {grids: form.runs, mask: form.tiles, sizes: form.packed}
        return [*own, "pixel_values", *(name for name, stated in more.items() if stated is not None)]

    def __call__(self, cache: KVCache | None = None, **inputs: Array) -> dict[str, Array]:
        """The task's outputs by name, float32: ``logits``, and of language models ``hidden``, too.

        It runs while the task is active; where its pages are still being loaded, each model layer waits for its own.

        Args:
            cache: keys and values of earlier tokens, which those of this call are appended to.
            inputs: by name, as the graph has them: ``input_ids`` int64 [batch, length], or ``pixel_values`` float32
                [batch, channels, height, width]. Where they are left out, ``attention_mask`` [batch, earlier + length]
                has all tokens seen, and ``position_ids`` [batch, length] are those that the model's own code gives:
                OPT numbers the tokens that the mask shows, all others count padding on the left, too. Where a text's
                padding mustn't matter, state them. Where pictures stand among words, ``pixel_values`` has those of
                this call's placeholders in their order; or ``features`` float32 [rows, width] has what `features` gave
                of them, and ``feature_index`` int64 [batch, length] which row stands in a token's place, −1 for none.
                Of pictures that are runs of patches, ``pixel_values`` are float32 [patches, numbers of a patch], with
                ``image_grid_thw`` as transformers' processor gives it; behind earlier tokens, state the positions. Of
                tiles they are as the processor gives them, or [tiles, channels, height, width] where these stand
                between words.

        Raises:
            TypeError: an input comes without its name.
            ValueError: an input is missing or unknown, or its dtype or shape isn't what the graph takes; or there are
                more or fewer placeholders than pictures have features.
            IndexError: an id isn't in its table.
            MemoryError: activations, or keys and values, would take more than they may.
            TaskNotActiveError: the task isn't active, so its pages may be absent.
            SwitchFailedError: a page couldn't be loaded.

        Examples:
            >>> import numpy as np
            >>> with engine.task("spam") as task:
            ...     logits = task(input_ids=np.array([[2, 9, 4, 3]]))["logits"]
            >>> logits.shape
            (1, 2)
        """
        if cache is not None and not isinstance(cache, KVCache):
            raise no_arrays(self._name, cache)
        known = set(self._takes)
        if unknown := sorted(inputs.keys() - known):
            raise ValueError(f"inputs: expected {', '.join(sorted(known))}, got {', '.join(unknown)}")
        all_inputs = self._with_defaults(inputs, cache)
        earlier = 0 if cache is None else cache.tokens
        try:
            outputs = self.below(all_inputs, cache)
        except (ValueError, IndexError) as error:
            tokens = earlier + _length(inputs)
            if tokens > self._context:  # a model without a table of positions may read more than it says
                at_most = f"the model reads at most {self._context}"
                raise type(error)(f"input_ids: {tokens} tokens, {at_most}; cut the text") from error
            raise
        return outputs if self._head is None else {**outputs, "logits": self.head(outputs["hidden"])}

    def below(self, inputs: Mapping[str, Array], cache: KVCache | None = None) -> dict[str, Array]:
        """The outputs by name, without those of the `head` if it has one.

        All inputs are stated, but for features where there are none, and no pixels. Errors are those of a call.
        """
        if self._pictures is not None and "features" not in inputs:
            none = np.full(np.shape(inputs.get("input_ids", ())), -1, np.int64)
            inputs = {"features": np.zeros((1, self._pictures.width), np.float32), "feature_index": none, **inputs}
        numbers = inputs.get("position_ids")
        by_grid = self._pictures is not None and self._pictures.runs is not None
        if by_grid and numbers is not None and np.ndim(numbers) == 2:
            inputs = {**inputs, "position_ids": np.broadcast_to(numbers, (3, *numbers.shape))}
        return self._below.run(inputs, cache, self._gate)

    def features(self, pixels: Array, grids: Grids | None = None) -> Floats | list[Floats]:
        """Pictures' features, float32 [pictures, tokens, width], of pixels float32 [pictures, channels, height, width].

        Of runs of patches there is an array [tokens, width] for each, of pixels [places of all pictures, patches of a
        place, numbers of a patch]; ``grids`` are rows and columns of their places. Each picture is computed alone, so
        that its bits don't depend on the others. Errors are those of a call.

        Raises:
            TypeError: the task reads no pictures among its words.
        """
        if self._features is None or self._pictures is None:
            raise TypeError(f"task {self._name!r}: expected one that reads pictures among its words, found none")
        runs = self._pictures.runs
        axes = 4 if runs is None else 3
        if np.ndim(pixels) != axes:
            raise ValueError(f"input pixel_values: expected {axes} axes, found {list(np.shape(pixels))}")
        if runs is None:
            found = np.empty((len(pixels), self._pictures.places, self._pictures.width), np.float32)
            for at in range(len(pixels)):
                found[at] = self._features.run({"pixel_values": pixels[at : at + 1]}, gate=self._gate)["features"][0]
            return found
        each = []
        for part, grid in parts_of(pixels, grids or ()):
            assert grid is not None
            inputs, order = tower_inputs(part, grid, runs)
            seen = self._features.run(inputs, gate=self._gate)["features"]
            if order is not None:
                seen[order] = seen.copy()
            each.append(seen)
        return each

    def place(
        self, ids: Integers, mask: Integers, features: Sequence[Floats], grids: Grids | None = None
    ) -> PlacedFeatures | None:
        """How pictures' features stand in texts, [texts, tokens]; None without any picture.

        Raises:
            ValueError: the texts have more or fewer placeholders.
        """
        if not len(features):
            return None
        assert self._pictures is not None
        return PlacedFeatures.of(ids, mask, self._pictures.token_id, features, grids)

    def head(self, hidden: Array) -> Array:
        """Logits of hidden states, float32 [batch, tokens, words] of [batch, tokens, width]; only if it `has_head`.

        Errors are those of a call.
        """
        assert self._head is not None
        return self._head.run({"hidden": hidden}, gate=self._gate)["logits"]

    def _with_defaults(self, inputs: Mapping[str, Array], cache: KVCache | None) -> Mapping[str, Array]:
        """Inputs, and what needn't be stated; without ids the program says what is missing."""
        ids = inputs.get("input_ids")
        if ids is None or np.ndim(ids) != 2:
            return inputs
        batch, length = np.shape(ids)
        end = length + (0 if cache is None else cache.tokens)
        seen = np.ones((batch, end), np.int64)
        mask = inputs.get("attention_mask", seen)
        by_mask = self._numbers_by_mask and np.shape(mask) == seen.shape
        made = {"attention_mask": seen, "position_ids": positions(mask if by_mask else seen)[:, end - length :]}
        if "pixel_values" in inputs and self._features is not None and self._pictures is not None:
            if "features" in inputs:
                raise ValueError("inputs: expected pixel_values or features, found both")
            words = {name: value for name, value in inputs.items() if name not in ("pixel_values", *OF_GRIDS)}
            features, grids = picture_features(inputs, self._pictures, self.features)
            placed = self.place(ids, mask[:, end - length :], features, grids)
            inputs = words
            if placed is not None:
                inputs = {**words, "features": placed.rows, "feature_index": placed.index}
                if placed.positions is not None and end == length:
                    made["position_ids"] = placed.positions
                elif placed.positions is not None and "position_ids" not in inputs:
                    raise ValueError("input position_ids: expected them for pictures behind earlier tokens, found none")
        return {**{each.name: made[each.name] for each in self.graph.inputs if each.name in made}, **inputs}


def _length(inputs: Mapping[str, Array]) -> int:
    """Tokens of each text; 0 where the inputs aren't texts."""
    shape = np.shape(inputs.get("input_ids", ()))
    return int(shape[1]) if len(shape) == 2 else 0


Stored: TypeAlias = "TensorInfo | RowTableEntry | WeightEntry | WholeWeightEntry"
"""What a bundle says of a parameter: its shape, and in what it lies."""

_BATCH, _LENGTH = 2, 3
"""Of the call that is planned: sizes other than 1, which fits every axis."""

_DTYPES = {"float32": "float32", "bfloat16": "uint16", "bool": "bool"} | dict.fromkeys(
    ("int8", "int16", "int32", "int64"), "int64"
)
"""The arrays that programs take in place of stored ones."""

_NODE = re.compile(r"node (\d+) \(\w+\): ")


Planned: TypeAlias = dict[tuple[object, ...], dict[str, TensorInfo]]
"""What a model's graphs give, by kind, what is dropped, and the tensors of a task. Many tasks have the same ones."""


def check_tasks(
    bundle: Bundle, graphs: Mapping[str, Graph], tokens: int, headers: Mapping[str, Header], planned: Planned
) -> None:
    """Refuse tasks whose answers would be wrong, or fail, for the shapes of what the bundle holds.

    Args:
        bundle: with the tasks.
        graphs: of their kinds, and of `FEATURES` where they read pictures among their words.
        tokens: how many the model's configuration says that it knows; of texts.
        headers: by task, the tensors that it has: those of all tasks, and its own.
        planned: what has been, with the same graphs; what is planned now is added.
    """
    left: dict[tuple[str, frozenset[str]], Graph] = {}  # most tasks drop the same, if anything
    for name, header in headers.items():
        task = bundle.task(name)
        for kind in (task.kind, FEATURES):
            if kind not in graphs:
                continue
            dropped = frozenset[str]() if kind == FEATURES else bundle.dropped(name)
            graph = left[kind, dropped] = left.get((kind, dropped)) or reduced(graphs[kind], name, dropped)
            stored = _stored(bundle, graph, task, header)
            shapes = kind, dropped, *header.items()  # weights in pages, and rows, are the model's
            if shapes not in planned:
                _check_sums(bundle, graphs[kind], task, header, dropped)
                _check_tables(task, graph, stored, 0 if task.takes_images else tokens)
                planned[shapes] = _planned(bundle, graph, stored)
            if kind == FEATURES:
                _check_features(task, planned[shapes], bundle.pictures)
            else:
                _check_outputs(task, planned[shapes], tokens)


def reduced(graph: Graph, task: str, dropped: Collection[str]) -> Graph:
    """The graph of a task's kind without the paged weights that the task has dropped.

    Raises:
        BundleFormatError: that is no half-layer.
    """
    try:
        return without(graph, {f"{name}.weight" for name in dropped})
    except ValueError as error:
        expected, _, found = str(error).removeprefix("expected ").partition(", found ")
        raise BundleFormatError(MANIFEST, f"tasks.{task}.dropped", expected, found) from error


def _stored(bundle: Bundle, graph: Graph, task: TaskEntry, header: Header) -> dict[str, Stored]:
    whole = {each.name: each for each in stored_in(header, bundle.manifest.whole_weights)}
    paged = {f"{weight.name}.weight": weight for weight in bundle.manifest.weights}
    tables = {table.name: table for table in bundle.manifest.row_tables}
    known: dict[str, Stored] = {**tables, **header, **whole, **paged}
    stored = {}
    for name in graph.parameters():
        if name not in known:
            raise BundleFormatError(
                f"tasks/{task.name}", name, f"a value, as {graph_file(graph.kind)} takes it", "none"
            )
        stored[name] = found = known[name]
        if isinstance(found, TensorInfo) and found.dtype not in _DTYPES:
            raise BundleFormatError(f"tasks/{task.name}", name, f"one of {', '.join(_DTYPES)}", found.dtype)
    return stored


def _check_tables(task: TaskEntry, graph: Graph, stored: Mapping[str, Stored], tokens: int) -> None:
    for node in graph.nodes:
        if node.op == "embedding" and node.inputs[1] == Operand.input("input_ids"):
            table = node.inputs[0]
            if table is not None and table.kind == "parameter" and (rows := _rows(stored[str(table.key)])) < tokens:
                expected = f"{tokens} rows, as many as there are tokens"
                raise BundleFormatError(f"tasks/{task.name}", str(table.key), expected, rows)


def _rows(of: Stored) -> int:
    if isinstance(of, TensorInfo):
        return of.shape[0] if of.shape else 0
    return of.out_features if isinstance(of, WeightEntry) else of.rows


def _check_sums(bundle: Bundle, graph: Graph, task: TaskEntry, header: Header, dropped: Collection[str]) -> None:
    """See that what takes the place of a sum, where zeros would be added to it, has the sum's shape."""
    sums = replaced(graph, {f"{name}.weight" for name in dropped})
    values = {*sums, *sums.values()}
    whole = replace(
        graph, nodes=needed(graph.nodes, values), outputs=tuple(GraphOutput(name, name) for name in sorted(values))
    )
    blank = {name: _blank(bundle, each) for name, each in _stored(bundle, whole, task, header).items()}
    try:
        shapes = GraphProgram(whole, blank).shapes(_BATCH, _LENGTH)
    except ValueError as error:
        raise _refusal(whole, str(error)) from error
    for name, other in sums.items():
        if shapes[name] != shapes[other]:
            expected = f"half-layers that are added to values of the sum's shape {shapes[name][1]}"
            raise BundleFormatError(MANIFEST, f"tasks.{task.name}.dropped", expected, f"{other} {shapes[other][1]}")


def _planned(bundle: Bundle, graph: Graph, stored: Mapping[str, Stored]) -> dict[str, TensorInfo]:
    blank = {name: _blank(bundle, each) for name, each in stored.items()}
    stage, outputs = graph, {}
    try:
        for stage in stages(graph, blank):
            for name, (dtype, shape) in GraphProgram(stage, blank).shapes(_BATCH, _LENGTH).items():
                outputs[name] = TensorInfo(dtype, tuple(shape))
    except ValueError as error:
        raise _refusal(stage, str(error)) from error
    return outputs


def _refusal(graph: Graph, text: str) -> BundleFormatError:
    """What native code refuses, with the field that it is about."""
    node, field = _NODE.match(text), "nodes"
    if node is not None:
        at, text = graph.nodes[int(node[1])], text[node.end() :]
        names = [str(each.key) for each in at.inputs if each is not None and each.kind == "parameter"]
        field = f"{at.output}: {at.op}{' of ' if names else ''}{', '.join(names)}"
    where, _, rest = text.rpartition("expected ")
    expected, _, found = rest.partition(", found ")
    return BundleFormatError(
        graph_file(graph.kind), f"{field}: {where}".strip(": ")[:400], expected, found or "another shape"
    )


def _check_outputs(task: TaskEntry, found: Mapping[str, TensorInfo], tokens: int) -> None:
    """See that logits are those of the classes or tokens, and hidden states those of each token."""
    count = tokens if task.writes else len(task.classes)
    what = f" and {count} {'tokens' if task.writes else 'classes'}"
    axes = (_BATCH, _LENGTH) if FORMS[task.kind].by_token else (_BATCH,)
    checked = {"logits"} if task.takes_images else {"logits", "hidden"}
    for name, output in found.items():
        wanted = (*axes, count) if name == "logits" else (_BATCH, _LENGTH, *output.shape[-1:])
        if name in checked and output != TensorInfo("float32", wanted):
            expected = f"float32 {list(wanted)} for {_BATCH} inputs{what if name == 'logits' else ''}"
            raise BundleFormatError(f"tasks/{task.name}", name, expected, f"{output.dtype} {list(output.shape)}")


def _check_features(task: TaskEntry, found: Mapping[str, TensorInfo], pictures: Pictures | None) -> None:
    """See that a picture has as many features as it takes places in a text, as wide as what stands there."""
    assert pictures is not None
    wanted: tuple[int, ...] = (_BATCH, pictures.places, pictures.width)
    if pictures.runs is not None:
        wanted = (_LENGTH, pictures.width)
    output = found["features"]
    if output != TensorInfo("float32", wanted):
        of = f"{_BATCH} pictures" if pictures.runs is None else f"a picture of {_LENGTH} places"
        expected = f"float32 {list(wanted)} for {of}"
        raise BundleFormatError(f"tasks/{task.name}", "features", expected, f"{output.dtype} {list(output.shape)}")


def _blank(bundle: Bundle, of: Stored) -> ProgramParameter:
    """A parameter of which only the shape is right, in memory that is never touched."""
    if isinstance(of, TensorInfo):
        return np.empty(of.shape, _DTYPES[of.dtype])
    if isinstance(of, RowTableEntry):
        return cast(RowSource, of)  # as many rows and columns; none is looked up
    if isinstance(of, WholeWeightEntry):
        return Blocks(_blank_weight(bundle, of.rows, of.columns, of.dtype), table=True)
    return Blocks(_blank_weight(bundle, of.out_features, of.in_features, bundle.manifest.dtype), of.layer)


def _blank_weight(bundle: Bundle, rows: int, columns: int, dtype: PageDtype) -> PagedWeight:
    block, nothing = bundle.manifest.block_shape, np.empty(0, np.int32)
    return PagedWeight(
        arena=np.empty((0, block_bytes(block, dtype)), np.uint8),
        page_table=nothing,
        crow_indices=np.zeros(-(-rows // block.rows) + 1, np.int32),
        col_indices=nothing,
        locations=nothing,
        out_features=rows,
        in_features=columns,
        block_rows=block.rows,
        block_cols=block.cols,
        dtype=dtype,
    )

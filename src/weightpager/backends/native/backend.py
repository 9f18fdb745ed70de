"""`NativeBackend`: a task as a program of native code over the graph of its kind; no torch in the process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from weightpager import kernels
from weightpager.answers.model import CacheSize, ModelLimits
from weightpager.backends.native.lowering import Array, Blocks, ProgramParameter
from weightpager.backends.native.model_limits import ModelConfig, end_tokens
from weightpager.backends.native.native_model import NativeModel
from weightpager.backends.native.program import GraphProgram, KVCache, Workspaces, stages, writes
from weightpager.backends.native.task import NativeTask, Planned, check_tasks, reduced
from weightpager.backends.task_parts import Parameters, StoredMatrix, TaskParts
from weightpager.bundle import Bundle
from weightpager.bundle.files.tensor_file import Header, TensorInfo
from weightpager.bundle.format.manifest import FORMS, Pictures
from weightpager.config import format_size
from weightpager.errors import BundleFormatError, ConfigError
from weightpager.graph import Graph, GraphInput
from weightpager.graph.file import FEATURES, graph_file
from weightpager.kernels import PagedWeight
from weightpager.kernels.choice import NATIVE, NO_NATIVE, REFERENCE
from weightpager.page_dtype import ENCODINGS
from weightpager.readers.image_reader import ImageReader, open_image_reader
from weightpager.readers.tokenizer import Tokenizer, open_tokenizer

_MOST_TOKEN_BYTES = 2**24
"""Keys and values of a token take no more in any layers: models of hundreds of billions of weights keep less."""


class NativeBackend:
    """Implements `Backend`; a task is a `NativeTask`."""

    name = "native"

    def __init__(self, bundle: Bundle) -> None:
        """Read the graphs of a bundle's tasks: it may be replaced later.

        Raises:
            ConfigError: the native module hasn't been built or reads no blocks of the bundle's dtype,
                ``WEIGHTPAGER_ISA`` names no native kernel, or a kind of tasks has no graph.
            BundleFormatError: a graph isn't what its manifest entry says.
        """
        self.kernel = kernels.isa()
        if self.kernel == REFERENCE:
            why = NO_NATIVE or "WEIGHTPAGER_ISA asks for the reference kernel, which is torch's"
            raise ConfigError(f"backend: 'native' needs the native kernels ({why}); use the backend 'torch'")
        if unread := sorted(bundle.manifest.block_dtypes - kernels.choice.READS):
            raise ConfigError(
                f"backend: 'native' has no kernels for blocks of {', '.join(unread)}; use the backend 'torch'"
            )
        self._graphs: dict[str, Graph] = {}
        self._planned: Planned = {}
        self._pictures = bundle.pictures
        for kind in self._kinds(bundle, bundle.tasks):
            self._graph_of(bundle, kind)
        config = ModelConfig.read(bundle)
        self._limits = config.limits(bundle.takes_images, bundle.pictures)
        self._eos_token_ids = end_tokens(bundle, config)
        self._narrow, self._numbers_by_mask, self._workspaces = config.narrow, config.numbers_by_mask, Workspaces()
        # Sums of float weights are split over more registers for fewer tokens.
        self._exact = all(ENCODINGS[dtype].scaled for dtype in bundle.manifest.block_dtypes)

    def place(self, stored: Parameters) -> Parameters:
        return stored

    def dtype(self, placed: Parameters) -> str:  # noqa: ARG002 - the interface's
        return "float32"

    def check(self, bundle: Bundle, placed: Mapping[str, Parameters]) -> None:
        self.check_headers(bundle, {name: _header(parameters) for name, parameters in placed.items()})

    def check_headers(self, bundle: Bundle, headers: Mapping[str, Header]) -> None:
        """`check` of tasks of which only the tensors' dtypes and shapes are known."""
        graphs = {kind: self._graph_of(bundle, kind) for kind in self._kinds(bundle, headers)}
        check_tasks(bundle, graphs, self._limits.vocab_size, headers, self._planned)

    def rest(self) -> None:
        self._workspaces = Workspaces()

    def build(self, parts: TaskParts[Parameters]) -> NativeTask:
        graph = self._graph_of(parts.bundle, parts.bundle.task(parts.name).kind)
        own = reduced(graph, parts.name, parts.bundle.dropped(parts.name))
        tower = None if self._pictures is None else self._graph_of(parts.bundle, FEATURES)
        wanted = {name for each in (own, tower) if each is not None for name in each.parameters()}
        parameters = {name: parameter for name, parameter in _parameters(parts) if name in wanted}
        try:
            programs = tuple(self._program(each, parameters) for each in stages(own, parameters))
            features = None if tower is None else self._program(tower, parameters)
        except ValueError as error:
            raise BundleFormatError(f"tasks/{parts.name}", "parameters", "those that its graph takes", error) from error
        return NativeTask(
            parts.name,
            graph,
            programs,
            parts.gate,
            self._limits.context,
            self._checked_cache(graph, programs[0]),
            numbers_by_mask=self._numbers_by_mask,
            features=features,
            pictures=self._pictures,
        )

    def _program(self, graph: Graph, parameters: Mapping[str, ProgramParameter]) -> GraphProgram:
        used = {name: parameters[name] for name in graph.parameters() if name in parameters}
        return GraphProgram(graph, used, NATIVE.index(self.kernel), workspaces=self._workspaces)

    @staticmethod
    def _kinds(bundle: Bundle, tasks: Iterable[str]) -> set[str]:
        """The kinds of graphs that tasks are run by."""
        kinds: set[str] = {bundle.task(name).kind for name in tasks}
        return kinds if bundle.pictures is None else kinds | {FEATURES}

    def limits(self, bundle: Bundle, itemsize: int) -> ModelLimits:  # noqa: ARG002 - the interface's
        return self._limits

    def cache_size(self, task: NativeTask, itemsize: int) -> CacheSize:  # noqa: ARG002 - the interface's
        return task.cache

    def _graph_of(self, bundle: Bundle, kind: str) -> Graph:
        """A kind's graph, read once: a bundle has one graph of a kind, whatever tasks are added to it.

        Errors are those of `_graph`.
        """
        if kind not in self._graphs:
            self._graphs[kind] = _graph(bundle, kind)
        return self._graphs[kind]

    def _checked_cache(self, graph: Graph, program: GraphProgram) -> CacheSize:
        """What a graph keeps of a text: its own attentions say it, as the configuration may say less.

        Raises:
            BundleFormatError: that is more than any model keeps.
        """
        if not writes(graph):
            return CacheSize()
        try:
            token_bytes = program.cache_block_bytes(self._narrow) // KVCache.block
        except ValueError as error:
            raise BundleFormatError(graph_file(graph.kind), "nodes", "those that read one token", error) from error
        if token_bytes > _MOST_TOKEN_BYTES:
            most, found = (format_size(size) for size in (_MOST_TOKEN_BYTES, token_bytes))
            raise BundleFormatError(
                graph_file(graph.kind), "attention", f"at most {most} of keys and values a token", found
            )
        return CacheSize(token_bytes, KVCache.block)

    def reader(self, bundle: Bundle) -> Tokenizer | ImageReader:
        if not bundle.takes_images:
            return open_tokenizer(bundle)
        image_reader = open_image_reader(bundle)
        if image_reader is None:
            raise ConfigError("backend: 'native' can't scale images as this bundle's model needs it; use 'torch'")
        return image_reader

    def model(self, task: NativeTask) -> NativeModel:
        return NativeModel(task, self._limits, self._eos_token_ids, narrow=self._narrow, exact=self._exact)


def _graph(bundle: Bundle, kind: str) -> Graph:
    """A kind's graph, which takes and gives what answers need.

    Raises:
        ConfigError: there is none.
        BundleFormatError: it lacks an output, or an input that pictures come by.
    """
    graph = bundle.graph(kind)
    if graph is None:
        raise ConfigError(
            f"backend: 'native' needs a graph of {kind} in the bundle, and {bundle.path} has none; use the backend "
            "'torch'; 'weightpager inspect' says why there is none"
        )
    remedy = "use the backend 'torch', or compile the bundle again"
    wanted, found = _outputs_of(kind), [each.name for each in graph.outputs]
    if not wanted <= set(found):
        raise BundleFormatError(graph_file(kind), "outputs", ", ".join(sorted(wanted)), f"{', '.join(found)}; {remedy}")
    if kind != FEATURES and bundle.pictures is not None:
        for each in _places(bundle.pictures):
            if each not in graph.inputs:
                stated = next((_said(other) for other in graph.inputs if other.name == each.name), "none")
                raise BundleFormatError(graph_file(kind), "inputs", _said(each), f"{stated}; {remedy}")
    return graph


def _outputs_of(kind: str) -> set[str]:
    if kind == FEATURES:
        return {"features"}
    return {"logits"} if FORMS[kind].images else {"logits", "hidden"}  # type: ignore[index]


def _places(pictures: Pictures) -> tuple[GraphInput, ...]:
    """The inputs of a language model's graph that place pictures' features."""
    return (
        GraphInput("feature_index", "int64", ("batch", "length")),
        GraphInput("features", "float32", ("features", pictures.width)),
    )


def _said(given: GraphInput) -> str:
    return f"{given.name}, {given.dtype} [{', '.join(map(str, given.shape))}]"


def _parameters(parts: TaskParts[Parameters]) -> Iterator[tuple[str, ProgramParameter]]:
    for name, cache in parts.rows.items():
        yield name, cache
    for name, parameter in parts.parameters.values.items():
        whole = parts.parameters.whole.get(name)
        yield name, _in_dtype(parameter.values) if whole is None else Blocks(whole, table=True)
    low_rank = {
        name: (Blocks(_placed(parts, down)), Blocks(_placed(parts, up)))
        for name, (down, up) in parts.low_rank_matrices().items()
    }
    for entry in parts.bundle.manifest.weights:
        if entry.name not in parts.weights:
            stored = StoredMatrix.of_entry(parts.bundle, entry, parts.tables[entry.name])
            parts.weights[entry.name] = _placed(parts, stored)
        yield f"{entry.name}.weight", Blocks(parts.weights[entry.name], entry.layer, low_rank=low_rank.get(entry.name))


def _placed(parts: TaskParts[Parameters], matrix: StoredMatrix) -> PagedWeight:
    return matrix.on_host(parts.arena, parts.page_table)


def _header(parameters: Parameters) -> Header:
    return {name: TensorInfo(each.dtype, each.values.shape) for name, each in parameters.values.items()}


def _in_dtype(values: Array) -> Array:
    """Values in a dtype that programs take: whole numbers become int64."""
    return values.astype(np.int64) if values.dtype.kind == "i" and values.dtype != np.int64 else values

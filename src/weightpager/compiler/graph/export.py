"""From a model's configuration to the graph of a kind of tasks."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Collection, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import cast

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from weightpager.backends.torch.architecture import has_picture_tower, module_of_kind, takes_patches, takes_tiles
from weightpager.bundle import BundleWriter, TaskKind
from weightpager.bundle.format.manifest import FORMS
from weightpager.compiler.graph.builder import CallForm, number_patches
from weightpager.compiler.graph.check import check_graph, check_weights
from weightpager.compiler.graph.passes import simplified
from weightpager.compiler.graph.translate import draft_of
from weightpager.errors import BundleFormatError, CompileError, ExportFailedError, NotExportableError, first_line
from weightpager.graph import Graph, GraphOutput, Operand, read_graph, write_graph
from weightpager.graph.dropped import without
from weightpager.graph.file import FEATURES, graph_file
from weightpager.graph.graph import Node
from weightpager.nn.experts import is_linear, mixtures

_STAND_INS = (9973, 9967, 9949)
"""Numbers of classes that no architecture has as a size: one that isn't in the configuration stands for any number."""

_FEW = 3
"""Classes of the module that a graph is compared with."""

_AFTER_HEAD = ("multiply", "divide", "add", "tanh")
"""What a language model may do with its logits, one by one."""

_MASK = Operand.input("attention_mask")

_OF_PICTURES: TaskKind = "text-generation"
"""The kind of tasks whose module has a picture tower."""


def export_graph(config: PretrainedConfig, kind: str, image: tuple[int, int, int] | None = None) -> Graph:
    """The graph of a kind of tasks, or of `FEATURES`, compared with its module.

    Args:
        config: of the model.
        kind: of tasks, or `FEATURES`.
        image: channels, height and width of the images or pictures that the model reads.

    Raises:
        ExportFailedError: another library failed.
        NotExportableError: there is none; says why.
    """
    form, said = form_of(config, kind, image), str(config.to_dict())
    classes = next(each for each in _STAND_INS if str(each) not in said)
    try:
        if mixtures(empty_module_of(config, kind, _FEW)):
            raise NotExportableError("experts, which are chosen for each token while the module runs")
        graph = simplified(draft_of(empty_module_of(config, kind, classes), form, classes)).graph
        graph = _with_hidden(graph) if form.writes else graph
        check_weights(graph)
        graph = read_graph(graph_file(kind), write_graph(graph))
        check_graph(graph, empty_module_of(config, kind, _FEW), form)
    except BundleFormatError as error:
        raise ExportFailedError(first_line(error)) from error
    return graph


def form_of(config: PretrainedConfig, kind: str, image: tuple[int, int, int] | None = None) -> CallForm:
    """What a model is called with; arguments are `export_graph`'s. Raises `NotExportableError` of unknown sizes."""
    if kind == FEATURES:
        return CallForm.of_patches(config.vision_config) if takes_patches(config) else CallForm.of_pictures(image)
    if has_picture_tower(config):
        width = config.get_text_config().hidden_size
        return CallForm.with_features(cast(TaskKind, kind), width, by_grid=takes_patches(config))
    return CallForm.of(cast(TaskKind, kind), image)


def empty_module_of(config: PretrainedConfig, kind: str, classes: int) -> PreTrainedModel:
    """A module of float32 that keeps no earlier tokens, its weights without memory, with so many classes if it has any.

    Raises:
        BundleFormatError: transformers can't build it.
    """
    kind = _OF_PICTURES if kind == FEATURES else cast(TaskKind, kind)
    names = [str(each) for each in range(classes)] if not FORMS[kind].writes else ()
    copied = copy.deepcopy(config)
    copied.dtype = torch.float32  # else what a constructor computes is rounded
    module = module_of_kind(copied, kind, names).float()
    if takes_tiles(copied):
        number_patches(module)
    for part in module.modules():
        if isinstance(part, PreTrainedModel):  # a language model in it has a configuration of its own
            part.config.use_cache = False
        elif is_linear(part):  # its own kind may be traced as several operators
            part.__class__ = nn.Linear
    return module


def _with_hidden(graph: Graph) -> Graph:
    """A graph that also gives what the head reads, so that the last token's logits can be computed alone."""
    makers: dict[str, Node] = {name: node for node in graph.nodes for name in node.outputs}
    node = makers[graph.outputs[0].value]
    while node.op in _AFTER_HEAD and len([each for each in node.inputs if each is not None]) == 1:
        before = node.inputs[0]
        if before is None or before.kind != "value":
            break
        node = makers[str(before.key)]
    if any(operand == _MASK and each.op != "attention" for each in graph.nodes for operand in each.inputs):
        raise NotExportableError("a mask that others than attentions read")
    hidden: Operand | None = node.inputs[0] if node.op == "linear" else None
    if hidden is None or hidden.kind != "value":
        raise NotExportableError("logits that no linear head gives")
    return replace(graph, outputs=(*graph.outputs, GraphOutput("hidden", str(hidden.key))))


_log = logging.getLogger(__name__)


def write_graphs(
    writer: BundleWriter,
    config: PretrainedConfig,
    kinds: Iterable[TaskKind],
    image: tuple[int, int, int] | None,
) -> dict[TaskKind, str]:
    """Write a graph for every kind of tasks whose module can be said as one; one that is there already stays.

    A model with a picture tower has a graph of that, too; without it the others are of no use, and aren't written.

    Args:
        writer: of the bundle.
        config: of the model.
        kinds: of its tasks.
        image: channels, height and width of the images or pictures that they read; None where they read texts alone.

    Returns:
        The kinds that have none, and why.

    Raises:
        CompileError: the storage refused a write.
    """
    reasons: dict[TaskKind, str] = {}
    without_features = _write(writer, config, FEATURES, image) if has_picture_tower(config) else None
    for kind in dict.fromkeys(kinds):
        found = without_features or _write(writer, config, kind, image)
        if found is not None:
            reasons[kind] = found
            _log.warning("%s: no graph, so that these tasks need torch where they run: %s", kind, found)
    return reasons


def _write(writer: BundleWriter, config: PretrainedConfig, kind: str, image: tuple[int, int, int] | None) -> str | None:
    """Write a graph if there is none yet; why there can't be any, or None."""
    name = graph_file(kind)
    if (writer.root / name).is_file():
        return None
    found = _exported(_Config(config), kind, image)
    if isinstance(found, str):
        return found
    writer.put(name, found)
    return None


def check_droppable(
    config: PretrainedConfig,
    kinds: Iterable[TaskKind],
    image: tuple[int, int, int] | None,
    weights: Collection[str],
) -> None:
    """Refuse what tasks would drop if the graphs of their kinds, as far as there are any, couldn't run without it.

    Args:
        config: of the model.
        kinds: of its tasks.
        image: as for `write_graphs`.
        weights: canonical names of parameters: all that tasks may drop.

    Raises:
        CompileError: zeros reach anything but a sum.
    """
    for kind in dict.fromkeys(kinds):
        found = _exported(_Config(config), kind, image)
        if isinstance(found, bytes):
            try:
                without(read_graph(graph_file(kind), found, kind), weights)
            except ValueError as error:
                raise CompileError(f"units: {error}; state block") from error


class _Config:
    """A configuration as a key: equal to any other that says the same of a model, wherever it was read."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = config
        said = json.loads(config.to_json_string(use_diff=False))
        said.pop("_name_or_path", None)
        self.text = f"{type(config).__name__} {json.dumps(said, sort_keys=True)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


@lru_cache(maxsize=32)  # one process may compile the same model again and again: other sparsities, or more tasks
def _exported(config: _Config, kind: str, image: tuple[int, int, int] | None) -> bytes | str:
    """The content of a graph's file, or why there is none."""
    try:
        return write_graph(export_graph(config.config, kind, image))
    except NotExportableError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - hours of training must not be lost, whatever else is raised
        _log.debug("%s: no graph", kind, exc_info=True)
        return f"{type(error).__name__}: {first_line(error)}"

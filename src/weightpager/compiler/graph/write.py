"""Graphs of a bundle's kinds of tasks, written into it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from transformers import PretrainedConfig

from weightpager.bundle import BundleWriter, TaskKind
from weightpager.compiler.graph.export import export_graph
from weightpager.errors import ExportFailedError, NotExportableError, first_line
from weightpager.graph import write_graph
from weightpager.graph.file import graph_file

_log = logging.getLogger(__name__)

_NONE: Mapping[TaskKind, Path] = {}


@dataclass(frozen=True)
class _NoGraph:
    """Why there is no graph.

    Attributes:
        reason: in words.
        refused: whether the module was, and not only the export failed.
    """

    reason: str
    refused: bool


def write_graphs(
    writer: BundleWriter,
    config: PretrainedConfig,
    kinds: Iterable[TaskKind],
    image: tuple[int, int, int] | None,
    old: Mapping[TaskKind, Path] = _NONE,
) -> dict[TaskKind, str]:
    """Write a graph for every kind of tasks whose module can be said as one.

    Args:
        writer: of the bundle; a graph that is there already stays.
        config: of the model.
        kinds: of its tasks.
        image: channels, height and width of the images that they read; None where they read texts.
        old: graphs of an older compiler, each of which is taken over if today's export fails. If it refuses the
            module, the old graph may be wrong and isn't.

    Returns:
        The kinds that have none, and why.

    Raises:
        CompileError: the storage refused a write.
    """
    reasons: dict[TaskKind, str] = {}
    for kind in dict.fromkeys(kinds):
        name = graph_file(kind)
        if (writer.root / name).is_file():
            continue
        found = _exported(_Config(config), kind, image)
        if isinstance(found, bytes):
            writer.put(name, found)
        elif kind in old and not found.refused:
            writer.link(name, old[kind])
            _log.warning("%s: the old graph stays, as a new one can't be made here: %s", kind, found.reason)
        else:
            reasons[kind] = found.reason
            _log.warning("%s: no graph, so that these tasks need torch where they run: %s", kind, found.reason)
    return reasons


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
def _exported(config: _Config, kind: TaskKind, image: tuple[int, int, int] | None) -> bytes | _NoGraph:
    """The content of a graph's file, or why there is none."""
    try:
        return write_graph(export_graph(config.config, kind, image))
    except NotExportableError as error:
        return _NoGraph(str(error), refused=not isinstance(error, ExportFailedError))
    except Exception as error:  # noqa: BLE001 - hours of training must not be lost, whatever else is raised
        _log.debug("%s: no graph", kind, exc_info=True)
        return _NoGraph(f"{type(error).__name__}: {first_line(error)}", refused=False)

"""Graphs of tiny architectures, exported once for a run: several processes ask for the same, and each is slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from families import ALL_DECODERS, ALL_ENCODERS, ALL_IMAGES, PIXELS, config_of
from made_once import made_once
from weightpager.bundle import TaskKind
from weightpager.compiler.graph.export import export_graph
from weightpager.errors import NotExportableError
from weightpager.graph import Graph, read_graph, write_graph

GRAPH, REASON = "graph.json", "reason.txt"


def image_of(kind: TaskKind) -> tuple[int, int, int] | None:
    """What a model of these tasks takes its images to be."""
    return PIXELS if kind == "image-classification" else None


def exported(factory: pytest.TempPathFactory, family: str, kind: TaskKind) -> Graph:
    """The graph of an architecture as `families` has it.

    Raises:
        NotExportableError: it has none.
    """

    def make(folder: Path) -> None:
        config = config_of(family, {**ALL_ENCODERS, **ALL_DECODERS, **ALL_IMAGES}[family])
        try:
            (folder / GRAPH).write_bytes(write_graph(export_graph(config, kind, image_of(kind))))
        except NotExportableError as error:
            (folder / REASON).write_text(str(error), encoding="utf-8")

    folder = made_once(factory, f"graph-{family}-{kind}", make)
    if (folder / REASON).exists():
        raise NotExportableError((folder / REASON).read_text(encoding="utf-8"))
    return read_graph(GRAPH, (folder / GRAPH).read_bytes())

"""Graphs of tiny architectures, exported once for a run: several processes ask for the same, and each is slow."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from families import ALL_DECODERS, ALL_ENCODERS, ALL_IMAGES, PIXELS, config_of
from made_once import made_once
from weightpager.bundle import TaskKind
from weightpager.compiler.graph.builder import Draft
from weightpager.compiler.graph.export import export_graph
from weightpager.compiler.graph.passes import simplified
from weightpager.errors import NotExportableError
from weightpager.graph import Graph, read_graph, write_graph

GRAPH, PLAIN, REASON = "graph.json", "plain.json", "reason.txt"


def image_of(kind: TaskKind) -> tuple[int, int, int] | None:
    """What a model of these tasks takes its images to be."""
    return PIXELS if kind == "image-classification" else None


def exported(factory: pytest.TempPathFactory, family: str, kind: TaskKind) -> Graph:
    """The graph of an architecture as `families` has it.

    Raises:
        NotExportableError: it has none.
    """
    return _read(_folder(factory, family, kind), GRAPH)


def exported_plain(factory: pytest.TempPathFactory, family: str, kind: TaskKind) -> Graph:
    """The same before it was simplified."""
    return _read(_folder(factory, family, kind), PLAIN)


def _read(folder: Path, name: str) -> Graph:
    if (folder / REASON).exists():
        raise NotExportableError((folder / REASON).read_text(encoding="utf-8"))
    return read_graph(name, (folder / name).read_bytes())


def _folder(factory: pytest.TempPathFactory, family: str, kind: TaskKind) -> Path:
    def make(folder: Path) -> None:
        def kept(draft: Draft) -> Draft:
            (folder / PLAIN).write_bytes(write_graph(draft.graph))
            return simplified(draft)

        config = config_of(family, {**ALL_ENCODERS, **ALL_DECODERS, **ALL_IMAGES}[family])
        try:
            with patch("weightpager.compiler.graph.export.simplified", kept):
                (folder / GRAPH).write_bytes(write_graph(export_graph(config, kind, image_of(kind))))
        except NotExportableError as error:
            (folder / REASON).write_text(str(error), encoding="utf-8")

    return made_once(factory, f"graph-{family}-{kind}", make)

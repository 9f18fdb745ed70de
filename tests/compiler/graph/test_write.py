"""A compile goes on where a graph can't be made, whatever its architecture's code raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from families import ALL_ENCODERS, config_of
from weightpager.bundle import BundleWriter
from weightpager.compiler.graph import export
from weightpager.compiler.graph.export import write_graphs
from weightpager.graph import read_graph
from weightpager.graph.file import graph_file

KIND = "token-classification"


@pytest.mark.slow
def test_a_graph_is_written_once(tmp_path: Path) -> None:
    config = config_of("Bert", ALL_ENCODERS["Bert"])
    assert write_graphs(BundleWriter(tmp_path), config, [KIND, KIND], None) == {}
    path = tmp_path / graph_file(KIND)
    assert read_graph("g.json", path.read_bytes(), KIND).kind == KIND
    path.write_bytes(b"what was there")
    assert write_graphs(BundleWriter(tmp_path), config, [KIND], None) == {}
    assert path.read_bytes() == b"what was there"


def test_where_a_model_lies_asks_for_no_graph_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        config = config_of("Bert", ALL_ENCODERS["Bert"])
        config.name_or_path = str(folder)
        assert write_graphs(BundleWriter(folder), config, [KIND], None) == {}
        contents.append((folder / graph_file(KIND)).read_bytes())
        monkeypatch.delattr(export, "export_graph", raising=False)
    assert contents[0] == contents[1]


def test_what_an_architecture_raises_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise KeyError("its own code\nfails")

    monkeypatch.setattr(export, "export_graph", failing)
    config = config_of("Bert", {**ALL_ENCODERS["Bert"], "vocab_size": 17})
    found = write_graphs(BundleWriter(tmp_path), config, [KIND], None)
    assert found[KIND].startswith("KeyError: 'its own code")
    assert not (tmp_path / graph_file(KIND)).exists()

"""A bundle's graphs: written by the compiler, carried along, refused where they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import tiny
import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_file
from weightpager.backends.torch.parameters import read_parameters
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle, TaskKind
from weightpager.bundle.garbage import collect
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler.repack import repack
from weightpager.errors import BundleFormatError
from weightpager.graph import write_graph
from weightpager.graph.file import graph_file

KIND: TaskKind = "text-classification"
KINDS: tuple[TaskKind, ...] = (KIND, "token-classification")
FILE = graph_file(KIND)


@pytest.mark.parametrize(
    ("fixture", "kinds"),
    [
        ("assistant_bundle", KINDS),
        ("wordy_bundle", KINDS),
        ("writer_bundle", ("language-modeling",)),
        ("camera_bundle", ("image-classification",)),
    ],
)
def test_a_compiled_bundle_has_graphs_of_its_own_parameters(
    request: pytest.FixtureRequest, fixture: str, kinds: tuple[TaskKind, ...]
) -> None:
    bundle = Bundle.open(request.getfixturevalue(fixture))
    assert bundle.graph_kinds == kinds
    assert read_report(bundle).without_graph == {}
    assert read_report(bundle).backend == "torch"  # as tests ask for it
    paged = {f"{weight.name}.weight" for weight in bundle.manifest.weights}
    for task in bundle.manifest.tasks:
        graph = bundle.graph(task.kind)
        assert graph is not None
        files = ("resident.safetensors", f"tasks/{task.name}/private.safetensors")
        held = {name for file in files for name in read_parameters(bundle, file)}
        assert set(graph.parameters()) <= held | paged | set(bundle.row_tables)
        assert paged <= set(graph.parameters())


def test_a_bundle_has_no_graph_of_a_kind_that_it_lacks(assistant_bundle: Path) -> None:
    assert Bundle.open(assistant_bundle).graph("language-modeling") is None


def test_a_bundle_of_an_architecture_without_a_graph_says_so(tmp_path: Path) -> None:
    from transformers import DebertaV2Config, DebertaV2Model

    content = tiny.assistant(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    DebertaV2Model(DebertaV2Config(vocab_size=64, **sizes)).save_pretrained(content["model"])
    content |= {"training": {"steps": 2, "batch": 8}, "tasks": dict(list(content["tasks"].items())[:1])}
    bundle = wp.compile(content, out=tmp_path / "a.bundle")
    assert bundle.graph_kinds == ()
    assert "the attention of DebertaV2" in read_report(bundle).without_graph[KIND]


def test_graphs_stay_when_a_bundle_is_packed_again_or_loses_tasks(assistant_bundle: Path, tmp_path: Path) -> None:
    repack(assistant_bundle, tmp_path / "packed.bundle")
    packed = Bundle.open(tmp_path / "packed.bundle")
    assert packed.graph_kinds == KINDS
    (last,) = (task.name for task in packed.manifest.tasks if task.kind != KIND)
    collect(packed.path, [last])
    assert Bundle.open(packed.path).graph_kinds == (KIND,)
    assert graph_file(KINDS[1]) not in Bundle.open(packed.path).manifest.files


def test_a_graph_that_lies_is_refused(assistant_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(assistant_bundle, tmp_path / "copy.bundle"))
    graph = Bundle.open(copy).graph(KIND)
    assert graph is not None
    content = write_graph(graph)
    for wrong, field in (
        (content.replace(b'"op":"linear"', b'"op":"system"', 1), "op"),
        (content.replace(b'"kind":"text-', b'"kind":"token-'), "kind"),
        (content[:-1], "document"),
        (b" " * (17 * 2**20), "bytes"),
    ):
        rewrite_file(copy, FILE, wrong)
        assert any(field in problem and "graph" in problem for problem in verify(copy).problems)
        with pytest.raises(BundleFormatError, match=field):
            Bundle.open(copy).graph(KIND)


def test_a_graph_of_no_known_kind_is_refused(assistant_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(assistant_bundle, tmp_path / "copy.bundle"))
    rewrite_file(copy, graph_file("speech"), (copy / FILE).read_bytes())
    assert any("expected a graph of" in problem for problem in verify(copy).problems)

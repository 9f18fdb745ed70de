"""Bundles whose tasks read pictures among their words, run by native code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blake3 import blake3

import tiny_llava
import weightpager as wp
from engines import InThread, hanging
from made_once import made_once
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect
from weightpager.errors import BundleFormatError, ConfigError
from weightpager.graph import Graph, GraphInput, Node, Operand, read_graph, write_graph
from weightpager.graph.file import FEATURES, graph_file
from weightpager.kernels.choice import NATIVE

pytestmark = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")

KIND = "text-generation"
PIXELS = np.random.default_rng(0).normal(size=(2, 3, tiny_llava.SIDE, tiny_llava.SIDE)).astype(np.float32)
IDS = np.array([[5, 16, 16, 16, 16, 6, 7], [16, 16, 16, 16, 8, 9, 10]])
INPUTS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "pixel_values": PIXELS}
CLOSE = 2e-5


@pytest.fixture(scope="module")
def watcher_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(folder: Path) -> None:
        steps = {"steps": 2, "batch": 4, "learning_rate": 1e-3}
        wp.compile(tiny_llava.watcher(folder, training=steps), out=folder / "watcher.bundle")

    return made_once(tmp_path_factory, "watcher", make) / "watcher.bundle"


def native(bundle: Path) -> wp.Engine:
    return wp.Engine.from_pretrained(bundle, backend="native")


def copied(bundle: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy whose manifest, and what is beside it, is changed; its hash fits."""
    shutil.copytree(bundle, to)
    manifest = json.loads((to / "manifest.json").read_text())
    change(manifest)
    sealed = json.dumps(manifest).encode()
    (to / "manifest.json").write_bytes(sealed)
    (to / "manifest.blake3").write_text(blake3(sealed).hexdigest() + "\n")
    return to


def with_graph(bundle: Path, to: Path, kind: str, change: Callable[[Graph], Graph]) -> Path:
    """A copy whose graph of a kind says something else; all hashes fit."""

    def changed(manifest: dict[str, Any]) -> None:
        name = graph_file(kind)
        content = write_graph(change(read_graph(name, (to / name).read_bytes())))
        (to / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "blake3": blake3(content).hexdigest()}

    return copied(bundle, to, changed)


def test_every_task_gives_what_torch_gives(watcher_bundle: Path) -> None:
    by_torch = {}
    with wp.Engine.from_pretrained(watcher_bundle, backend="torch") as engine:
        for task in engine.bundle.tasks:
            with engine.task(task):
                model = engine.model(task)
                by_torch[task] = model.features(PIXELS), model.logits(INPUTS), model.hidden(INPUTS)
        limits = engine.limits
    with native(watcher_bundle) as engine:
        found: dict[str, tuple[Any, ...]] = {}
        for task in (*by_torch, *by_torch):
            with engine.task(task):
                model = engine.model(task)
                outputs = model.features(PIXELS), model.logits(INPUTS), model.hidden(INPUTS)
            for ours, theirs, again in zip(outputs, by_torch[task], found.setdefault(task, outputs), strict=True):
                assert np.abs(ours - theirs).max() < CLOSE * max(1, np.abs(theirs).max())
                assert np.array_equal(ours, again)
        assert engine.limits.pictures == limits.pictures == engine.bundle.pictures
        assert (engine.limits.vocab_size, engine.limits.context) == (limits.vocab_size, limits.context)
    first, second = (outputs[0] for outputs in found.values())
    assert np.array_equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
def test_rows_on_demand_whole_weights_and_low_rank_parts(tmp_path: Path, dtype: str) -> None:
    """A placeholder's row is looked up like any word's, though features stand in its place."""
    model = tiny_llava.llava(tmp_path / "llava", "dinov2", "qwen2", tied=False)
    wordy = tiny_llava.config("dinov2", "qwen2", tied=False)
    wordy.text_config.vocab_size = 4000
    tiny_llava.model(wordy).save_pretrained(model)
    recover = {"method": "finetune", "steps": 2, "batch": 4, "private_steps": 2, "low_rank": 2}
    changes = {"rows": "on-demand", "dtype": dtype, "recover": recover, "training": {"steps": 2, "batch": 4}}
    bundle = wp.compile(tiny_llava.watcher(tmp_path, model=str(model), **changes), out=tmp_path / "watcher.bundle")
    assert bundle.row_tables
    with wp.Engine.from_pretrained(bundle.path, backend="torch") as engine:
        expected = {task: engine.activate(task) and engine.model(task).logits(INPUTS) for task in bundle.tasks}
    with native(bundle.path) as engine:
        for task, theirs in expected.items():
            found = engine.activate(task)(**INPUTS)["logits"]
            error = np.linalg.norm(found - theirs) / np.linalg.norm(theirs)
            assert error < (1e-3 if dtype == "int4" else CLOSE), error  # int4 rounds activations


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_parameters_in_bfloat16_are_read_as_they_are(watcher_bundle: Path, backend: str) -> None:
    """Pixels are float32 however a task computes, for a torch module that is called itself, too."""
    with native(watcher_bundle) as engine:
        wide = engine.activate("animal") and engine.model("animal").logits(INPUTS)
    with wp.Engine.from_pretrained(watcher_bundle, backend=backend, dtype="bfloat16") as engine:
        task, model = engine.activate("animal"), engine.model("animal")
        found = model.logits(INPUTS)
        assert np.linalg.norm(found - wide) < 5e-2 * np.linalg.norm(wide)
        assert (found != wide).any()
        if backend == "torch":
            with torch.no_grad():
                own = task(**{name: torch.from_numpy(value) for name, value in INPUTS.items()}).logits
            assert np.linalg.norm(own.float().numpy() - found) < 2e-2 * np.linalg.norm(wide)


def test_pictures_are_read_while_pages_are_loaded(watcher_bundle: Path) -> None:
    """The tower's layers wait for their own pages, as others do."""
    with native(watcher_bundle) as engine:
        expected = engine.activate("animal")(**INPUTS)["logits"]
    with hanging(Bundle.open(watcher_bundle), backend="native") as (engine, store):
        store.hang()
        task = engine.activate("animal", wait=False)
        running = InThread(lambda: task.features(PIXELS))
        store.wait_for_a_read()
        assert running.is_alive()
        store.resume()
        running.result()
        assert np.array_equal(task(**INPUTS)["logits"], expected)


def test_nothing_is_wrong_with_a_bundle_of_two_graphs(watcher_bundle: Path) -> None:
    assert Bundle.open(watcher_bundle).has_graphs
    assert verify(watcher_bundle).problems == ()


def test_a_bundle_of_fewer_tasks_keeps_the_towers_graph(watcher_bundle: Path, tmp_path: Path) -> None:
    collect(watcher_bundle, ["number"], out=tmp_path / "fewer.bundle")
    assert Bundle.open(tmp_path / "fewer.bundle").has_graphs
    with native(tmp_path / "fewer.bundle") as engine:
        assert engine.activate("animal")(**INPUTS)["logits"].shape == (2, 7, 18)


def test_without_the_towers_graph_torch_runs_the_tasks(
    watcher_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND")
    without = copied(
        watcher_bundle, tmp_path / "old.bundle", lambda manifest: manifest["files"].pop(graph_file(FEATURES))
    )
    (without / graph_file(FEATURES)).unlink()
    assert not Bundle.open(without).has_graphs
    with pytest.raises(ConfigError, match="'native' needs a graph of features in the bundle"):
        native(without)
    with wp.Engine.from_pretrained(without) as engine:
        assert engine.activate("animal").get_image_features is not None


def other_output(graph: Graph) -> Graph:
    return replace(graph, outputs=tuple(replace(each, name="other") for each in graph.outputs))


def without_places(graph: Graph) -> Graph:
    """All of them words, whatever a call states."""
    inputs = [replace(each, name="else") if each.name == "feature_index" else each for each in graph.inputs]
    return _reading(replace(graph, inputs=tuple(inputs)), "feature_index", "else")


def of_floats(graph: Graph) -> Graph:
    """Places of another dtype, which what reads them doesn't take."""
    inputs = [replace(each, dtype="float32") if each.name == "feature_index" else each for each in graph.inputs]
    return replace(graph, inputs=tuple(inputs))


def narrower(graph: Graph) -> Graph:
    inputs = [
        GraphInput("features", "float32", ("features", 40)) if each.name == "features" else each
        for each in graph.inputs
    ]
    return replace(graph, inputs=tuple(inputs))


def one_fewer(graph: Graph) -> Graph:
    """Without the last of a picture's features."""
    (output,) = graph.outputs
    cut = Node("slice", (Operand.value(output.value),), {"axis": 1, "start": 0, "end": 3, "step": 1}, ("v9000",))
    return replace(graph, nodes=(*graph.nodes, cut), outputs=(replace(output, value="v9000"),))


def of_no_parameter(graph: Graph) -> Graph:
    node = next(node for node in graph.nodes if node.op == "linear")
    wrong = replace(node, inputs=(node.inputs[0], Operand.parameter("base_model.nowhere.weight"), *node.inputs[2:]))
    return replace(graph, nodes=tuple(wrong if each is node else each for each in graph.nodes))


def _reading(graph: Graph, old: str, new: str) -> Graph:
    def other(operand: Operand | None) -> Operand | None:
        return Operand.input(new) if operand == Operand.input(old) else operand

    return replace(graph, nodes=tuple(replace(node, inputs=tuple(map(other, node.inputs))) for node in graph.nodes))


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (FEATURES, other_output, r"graph-features.json: outputs: expected features, found other; use the backend"),
        (FEATURES, one_fewer, r"features: expected float32 \[2, 4, 48\] for 2 pictures, found float32 \[2, 3, 48\]"),
        (FEATURES, of_no_parameter, r"base_model.nowhere.weight: expected a value, as .*graph-features.json takes"),
        (KIND, without_places, r"inputs: expected feature_index, int64 \[batch, length\], found none; use"),
        (KIND, of_floats, r"inputs: expected feature_index, int64 .* found feature_index, float32 \[batch, length\]"),
        (KIND, narrower, r"expected features, float32 \[features, 48\], found features, float32 \[features, 40\]"),
    ],
)
def test_graphs_that_do_not_fit_pictures_are_refused(
    watcher_bundle: Path, tmp_path: Path, kind: str, change: Callable[[Graph], Graph], words: str
) -> None:
    lying = with_graph(watcher_bundle, tmp_path / "lying.bundle", kind, change)
    with pytest.raises(BundleFormatError, match=words):
        native(lying)


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        ({"tokens": 5}, r"features: expected float32 \[2, 5, 48\] for 2 pictures, found float32 \[2, 4, 48\]"),
        ({"width": 40}, r"inputs: expected features, float32 \[features, 40\], found features, float32"),
    ],
)
def test_a_manifest_that_does_not_fit_its_graphs_is_refused(
    watcher_bundle: Path, tmp_path: Path, pictures: dict[str, int], words: str
) -> None:
    lying = copied(watcher_bundle, tmp_path / "lying.bundle", lambda manifest: manifest["pictures"].update(pictures))
    with pytest.raises(BundleFormatError, match=words):
        native(lying)


def test_a_tower_belongs_to_models_that_read_pictures(assistant_bundle: Path, tmp_path: Path) -> None:
    to, old, new = tmp_path / "strange.bundle", graph_file("text-classification"), graph_file(FEATURES)

    def renamed(manifest: dict[str, Any]) -> None:
        (to / old).rename(to / new)
        manifest["files"][new] = manifest["files"].pop(old)

    (problem,) = verify(copied(assistant_bundle, to, renamed)).problems
    assert f"{new}: file: expected a graph of text-classification, " in problem

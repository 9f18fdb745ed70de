"""Tasks that native code runs, against torch's modules of the same bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from blake3 import blake3

import tiny
import weightpager as wp
from engines import InThread, hanging
from weightpager import kernels
from weightpager.answers.model import CacheSize
from weightpager.backends.native.backend import NativeBackend
from weightpager.backends.native.program import KVCache
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.errors import BundleFormatError, ConfigError, SwitchFailedError, TaskNotActiveError
from weightpager.graph import Graph, GraphInput, GraphOutput, Node, Operand, read_graph, write_graph
from weightpager.graph.file import graph_file
from weightpager.kernels.choice import NATIVE

pytestmark = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")

IDS = np.array([[2, 4, 9, 12, 7, 3], [2, 15, 5, 3, 0, 0]])
MASK = np.array([[1] * 6, [1, 1, 1, 1, 0, 0]])
CLOSE = 1e-5


@pytest.fixture(scope="module")
def tied_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoders in int4, whose table the head is tied to is int8 in blocks."""
    folder = tmp_path_factory.mktemp("tied")
    wp.compile(tiny.writer(folder, dtype="int4"), out=folder / "tied.bundle")
    return folder / "tied.bundle"


@pytest.fixture(scope="module")
def pooled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders in int4, whose pooler is int8 in blocks."""
    folder = tmp_path_factory.mktemp("pooled")
    wp.compile(tiny.assistant(folder, dtype="int4", compare="none"), out=folder / "pooled.bundle")
    return folder / "pooled.bundle"


@pytest.fixture(scope="module")
def adapted_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks with low-rank parts."""
    folder = tmp_path_factory.mktemp("adapted")
    recover = {"method": "finetune", "steps": 4, "batch": 8, "private_steps": 6, "low_rank": 2}
    wp.compile(tiny.assistant(folder, recover=recover), out=folder / "adapted.bundle")
    return folder / "adapted.bundle"


def native(bundle: Path, **options: Any) -> wp.Engine:
    return wp.Engine.from_pretrained(bundle, backend="native", **options)


def by_torch(bundle: Path, inputs: dict[str, npt.NDArray[Any]], dtype: str) -> dict[str, npt.NDArray[np.float32]]:
    """What torch gives for each task."""
    tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
    found = {}
    with wp.Engine.from_pretrained(bundle, backend="torch", dtype=dtype) as engine, torch.inference_mode():
        for task in engine.bundle.tasks:
            with engine.task(task) as module:
                found[task] = module(**tensors).logits.float().numpy()
    return found


def inputs_of(bundle: Path) -> dict[str, npt.NDArray[Any]]:
    if "camera" in bundle.name:
        pixels = np.random.default_rng(0).standard_normal((3, 3, 16, 16))
        return {"pixel_values": pixels.astype(np.float32)}
    if bundle.name in ("writer.bundle", "tied.bundle"):
        return {"input_ids": IDS[:1]}
    return {"input_ids": IDS, "attention_mask": MASK}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["assistant", "wordy", "writer", "camera", "tied", "pooled", "adapted"])
def test_every_task_gives_what_torch_gives(request: pytest.FixtureRequest, which: str) -> None:
    bundle: Path = request.getfixturevalue(f"{which}_bundle")
    inputs = inputs_of(bundle)
    expected = by_torch(bundle, inputs, "auto")
    with native(bundle) as engine:
        for task in engine.bundle.tasks:
            found = engine.activate(task)(**inputs)["logits"]
            assert found.dtype == np.float32
            error = np.linalg.norm(found - expected[task]) / np.linalg.norm(expected[task])
            assert error < (1e-3 if which in ("tied", "pooled") else CLOSE), task  # int4 rounds activations
        assert engine.report().kernel in NATIVE
        assert engine.dtype(task) == "float32"


def test_parameters_in_bfloat16_are_read_as_they_are(assistant_bundle: Path) -> None:
    inputs = inputs_of(assistant_bundle)
    expected = by_torch(assistant_bundle, inputs, "auto")
    with native(assistant_bundle, dtype="bfloat16") as engine:
        for task, logits in expected.items():
            found = engine.activate(task)(**inputs)["logits"]
            assert np.linalg.norm(found - logits) < 3e-2 * np.linalg.norm(logits)
            assert (found != logits).any()


def test_a_text_goes_on_from_what_is_remembered(writer_bundle: Path) -> None:
    with native(writer_bundle) as engine:
        task = engine.activate("animals")
        whole = task(input_ids=IDS[:1])["logits"]
        cache = KVCache(1 << 20)
        parts = [task(cache, input_ids=IDS[:1, start:end])["logits"] for start, end in ((0, 4), (4, 5), (5, 6))]
        assert cache.tokens == 6
        assert np.abs(np.concatenate(parts, 1) - whole).max() < CLOSE


def test_inputs_that_need_not_be_stated(assistant_bundle: Path) -> None:
    with native(assistant_bundle) as engine:
        task = engine.activate("animal")
        stated = task(input_ids=IDS, attention_mask=np.ones_like(IDS))["logits"]
        assert (task(input_ids=IDS)["logits"] == stated).all()
        with pytest.raises(ValueError, match="expected attention_mask, input_ids, got words"):
            task(words=IDS)
        with pytest.raises(ValueError, match="input input_ids: expected it"):
            task(attention_mask=MASK)
        with pytest.raises(ValueError, match="expected int64, found float32"):
            task(input_ids=IDS.astype(np.float32), attention_mask=MASK)
        with pytest.raises(IndexError):
            task(input_ids=IDS + 10**6)
        assert (task(input_ids=IDS)["logits"] == stated).all()


def test_more_tokens_than_the_model_reads_are_counted(assistant_bundle: Path) -> None:
    with native(assistant_bundle) as engine, engine.task("animal") as task:
        most = engine.limits.context
        assert task(input_ids=np.ones((1, most), np.int64))["logits"].shape[0] == 1
        with pytest.raises(ValueError, match=f"^input_ids: {most + 1} tokens, the model reads at most {most};"):
            task(input_ids=np.ones((1, most + 1), np.int64))


def test_a_task_that_is_not_active_is_refused(assistant_bundle: Path) -> None:
    with native(assistant_bundle) as engine:
        task = engine.activate("animal")
        engine.deactivate()
        with pytest.raises(TaskNotActiveError):
            task(input_ids=IDS)


def test_a_task_runs_while_its_pages_are_loaded(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    with native(assistant_bundle) as engine:
        expected = engine.activate("animal")(input_ids=IDS)["logits"]
    with hanging(bundle, backend="native") as (engine, store):
        store.hang()
        task = engine.activate("animal", wait=False)
        running = InThread(lambda: task(input_ids=IDS)["logits"])
        store.wait_for_a_read()
        assert running.is_alive()
        store.resume()
        assert (running.result() == expected).all()


def test_a_page_that_cannot_be_loaded_raises_from_the_task(assistant_bundle: Path) -> None:
    with hanging(Bundle.open(assistant_bundle), backend="native", read_timeout=0.1) as (engine, store):
        store.hang()
        task = engine.activate("animal", wait=False)
        with pytest.raises(SwitchFailedError):
            task(input_ids=IDS)


def with_graph(bundle: Path, to: Path, change: Any, kind: str = "text-classification") -> Path:
    """A copy whose graph of a kind of tasks says something else, or isn't there; all hashes fit."""
    shutil.copytree(bundle, to)
    name, manifest = graph_file(kind), json.loads((to / "manifest.json").read_text())
    if change is None:
        (to / name).unlink()
        del manifest["files"][name]
    else:
        content = change((to / name).read_text()).encode()
        (to / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "blake3": blake3(content).hexdigest()}
    sealed = json.dumps(manifest).encode()
    (to / "manifest.json").write_bytes(sealed)
    (to / "manifest.blake3").write_text(blake3(sealed).hexdigest() + "\n")
    return to


def test_a_bundle_without_a_graph_is_told(assistant_bundle: Path, tmp_path: Path) -> None:
    without = with_graph(assistant_bundle, tmp_path / "old.bundle", None)
    with pytest.raises(ConfigError, match=r"'native' needs a graph of text-classification in the bundle.*inspect"):
        native(without)
    wp.Engine.from_pretrained(without, backend="torch").close()


def test_a_kind_that_came_later_is_built_unchecked(
    assistant_bundle: Path, writer_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with native(assistant_bundle) as engine:
        monkeypatch.setattr(engine._open, "backend", NativeBackend(Bundle.open(writer_bundle)))
        assert engine.module("animal").graph.kind == "text-classification"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.embeddings.LayerNorm.weight", "base_model.embeddings.Norm.weight"),
        ("base_model.embeddings.LayerNorm.weight", "base_model.embeddings.word_embeddings.weight"),
    ],
)
def test_a_graph_whose_parameters_do_not_fit_is_refused(
    assistant_bundle: Path, tmp_path: Path, old: str, new: str
) -> None:
    lying = with_graph(assistant_bundle, tmp_path / "lying.bundle", lambda text: text.replace(old, new))
    with pytest.raises(BundleFormatError, match=r"expected"):
        native(lying)


@pytest.mark.parametrize("name", ["logits", "hidden"])
def test_a_graph_without_an_output_that_answers_need_is_refused(
    assistant_bundle: Path, tmp_path: Path, name: str
) -> None:
    old, new = f'"name":"{name}"', '"name":"other"'
    lying = with_graph(assistant_bundle, tmp_path / "lying.bundle", lambda text: text.replace(old, new))
    words = "graph-text-classification.json: outputs: expected hidden, logits, found .*; use the backend 'torch', or"
    with pytest.raises(BundleFormatError, match=words):
        native(lying)
    wp.Engine.from_pretrained(lying, backend="torch").close()


def test_a_graph_that_takes_what_no_model_is_given_is_the_bundles_fault(assistant_bundle: Path, tmp_path: Path) -> None:
    def changed(text: str) -> str:
        graph = read_graph("graph", text.encode())
        return write_graph(replace(graph, inputs=(*graph.inputs, GraphInput("more", "int64", graph.dims)))).decode()

    lying = with_graph(assistant_bundle, tmp_path / "lying.bundle", changed)
    with native(lying) as engine:
        for ask in (engine.predict, engine.embed):
            with pytest.raises(BundleFormatError, match="the model can read, found input more: expected it"):
                ask("animal", ["red cat"])


def hidden_below(graph: Graph) -> Graph:
    """Its output ``hidden`` is the first node's value."""
    outputs = [replace(each, value="v0") if each.name == "hidden" else each for each in graph.outputs]
    return replace(graph, outputs=tuple(outputs))


def head_of_a_vector(graph: Graph) -> Graph:
    """Its head's weight is a norm's."""
    norm = next(name for name in graph.parameters() if name.endswith("norm.weight"))
    head = graph.nodes[-1]
    assert head.op == "linear"
    inputs = (head.inputs[0], Operand.parameter(norm), *head.inputs[2:])
    return replace(graph, nodes=(*graph.nodes[:-1], replace(head, inputs=inputs)))


def hidden_twice(graph: Graph) -> Graph:
    """Another output is the value of ``hidden``."""
    hidden = next(each.value for each in graph.outputs if each.name == "hidden")
    return replace(graph, outputs=(*graph.outputs, GraphOutput("more", hidden)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hidden_below, "a linear head of the value 'hidden', with a matrix as its weight"),
        (head_of_a_vector, "a linear head of the value 'hidden', with a matrix as its weight"),
        (hidden_twice, "the value of 'hidden' as no other output, found it as 'more'"),
    ],
)
def test_a_graph_whose_head_cannot_be_run_alone_is_refused(
    writer_bundle: Path, tmp_path: Path, change: Callable[[Graph], Graph], words: str
) -> None:
    def changed(text: str) -> str:
        return write_graph(change(read_graph("graph", text.encode()))).decode()

    lying = with_graph(writer_bundle, tmp_path / "lying.bundle", changed, "language-modeling")
    with pytest.raises(BundleFormatError, match=words):
        native(lying)


def with_groups(bundle: Path, to: Path, groups: int | str) -> Path:
    """A copy whose first attention has so many heads and groups, all of them the first head's."""
    one = {"axis": 2, "start": 0, "end": 1, "step": 1}

    def changed(text: str) -> str:
        graph = read_graph("graph", text.encode())
        at = next(at for at, node in enumerate(graph.nodes) if node.op == "attention")
        attention, more = graph.nodes[at], list[Node]()

        def expanded(operand: Operand | None, heads: int | str, *outputs: str) -> None:
            more.append(Node("slice", (operand,), one, (outputs[0],)))
            shape = {"shape": ["batch", "length", heads, -1]}
            more.append(Node("expand", (Operand.value(outputs[0]),), shape, (outputs[1],)))

        for number, operand in enumerate(attention.inputs[:3]):
            expanded(operand, groups, f"v900{number}", f"v901{number}")
        operands = (*(Operand.value(f"v901{number}") for number in range(3)), attention.inputs[3])
        more.append(replace(attention, inputs=operands, outputs=("v9020",)))
        expanded(Operand.value("v9020"), 4, "v9021", *attention.outputs)
        return write_graph(replace(graph, nodes=(*graph.nodes[:at], *more, *graph.nodes[at + 1 :]))).decode()

    return with_graph(bundle, to, changed, "language-modeling")


def test_what_a_cache_takes_is_read_of_the_graph(writer_bundle: Path, tmp_path: Path) -> None:
    """Two layers, the other of two heads, all of 16 numbers; its configuration knows of two heads in each."""
    expanded = with_groups(writer_bundle, tmp_path / "expanded.bundle", 2048)
    with native(expanded) as engine:
        assert engine.cache_size() == CacheSize(2 * (2048 + 2) * 16 * 4, 64)
        cache = KVCache(engine.cache_size().bytes(1, 5) - 1)
        with pytest.raises(MemoryError, match="keys and values of at most"):
            engine.activate("animals")(cache, input_ids=IDS[:1, :5])
    more = with_groups(writer_bundle, tmp_path / "more.bundle", 2**20)
    words = "attention: expected at most 16.0 MiB of keys and values a token, found 128.0 MiB"
    with native(more) as engine, pytest.raises(BundleFormatError, match=words):
        engine.activate("animals")


def test_a_cache_never_outgrows_what_was_planned(writer_bundle: Path, tmp_path: Path) -> None:
    """As many groups as a text has tokens: one at a time, they are few."""
    growing = with_groups(writer_bundle, tmp_path / "growing.bundle", "length")
    with native(growing) as engine:
        assert engine.cache_size() == CacheSize(2 * (1 + 2) * 16 * 4, 64)
        with pytest.raises(MemoryError, match="keys and values of at most"):
            engine.predict("animals", ["one two three four"], max_new_tokens=2)


def test_what_cannot_run_is_refused(assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="backend: expected one of auto, native, torch, got 'onnx'"):
        EngineConfig(backend="onnx")
    monkeypatch.setenv("WEIGHTPAGER_BACKEND", "onnx")
    with pytest.raises(ConfigError, match="WEIGHTPAGER_BACKEND: expected one of auto, native, torch, got 'onnx'"):
        wp.Engine.from_pretrained(assistant_bundle)
    monkeypatch.setenv("WEIGHTPAGER_BACKEND", "native")
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        assert engine._open.backend.name == "native"
    with wp.Engine.from_pretrained(assistant_bundle, backend="torch") as engine:
        assert engine._open.backend.name == "torch"
    monkeypatch.setenv("WEIGHTPAGER_ISA", "reference")
    with pytest.raises(ConfigError, match="'native' needs the native kernels"):
        native(assistant_bundle)


def test_a_dtype_that_native_kernels_do_not_read_is_torchs(
    assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND", raising=False)
    monkeypatch.setattr(kernels.choice, "READS", kernels.choice.READS - {Bundle.open(assistant_bundle).manifest.dtype})
    with pytest.raises(ConfigError, match="'native' has no kernels for blocks of .*; use the backend 'torch'"):
        native(assistant_bundle)
    with wp.Engine.from_pretrained(assistant_bundle) as engine:
        assert engine._open.backend.name == "torch"
    assert verify(assistant_bundle).problems == ()

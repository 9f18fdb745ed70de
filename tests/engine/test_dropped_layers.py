"""Tasks that do without half-layers: bundles of them, on either backend, beside transformers' modules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from blake3 import blake3
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertModel,
)

import tiny
import tiny_llava
import weightpager as wp
from command import Command
from families import ENCODERS, config_of
from weightpager.backends.torch import export
from weightpager.backends.torch.export import dense_weights, export_task, layers_left_out
from weightpager.bundle import Bundle
from weightpager.bundle.report.compile_report import read_report
from weightpager.bundle.report.page_statistics import DroppedParts
from weightpager.compiler.repack import repack
from weightpager.errors import BundleFormatError
from weightpager.graph import Node, Operand, read_graph, write_graph
from weightpager.graph.file import graph_file
from weightpager.kernels.choice import NATIVE
from weightpager.runtime.budget import smallest_budget

IDS = np.array([[2, 4, 9, 12, 7, 3], [2, 15, 5, 3, 6, 8]])
MASK = np.ones_like(IDS)


def llama(folder: Path) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
        bos_token_id=2,
        eos_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> Path:
    """Its linear layers have biases, which aren't zero."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.2, bos_token_id=2, eos_token_id=3))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def compiled(folder: Path, model: Path, **changes: Any) -> Bundle:
    content = tiny.writer(
        folder, model=str(model), **{"units": "half-layer", "compare": "none", "dtype": "float32", **changes}
    )
    return wp.compile(content, folder / "a.bundle", cache=False)


@pytest.fixture(scope="module", params=[llama, gpt2])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("dropped")
    sparsity = {"animals": 0.5, "numbers": 0.25}
    content = tiny.writer(
        folder, model=str(request.param(folder / "model")), units="half-layer", compare="none", dtype="float32"
    )
    for name, task in content["tasks"].items():
        task["sparsity"] = sparsity[name]
    return wp.compile(content, folder / "a.bundle", cache=False)


def plain(bundle: Bundle, task: str) -> npt.NDArray[np.float32]:
    """What transformers' module gives whose linear layers are as the bundle has them, and zeros where it has none."""
    source = Path(bundle.path).parent / "model"
    model: Any = (
        (
            LlamaForCausalLM
            if "llama" in str(json.loads((source / "config.json").read_text())["model_type"])
            else GPT2LMHeadModel
        )
        .from_pretrained(source, dtype=torch.float32)
        .eval()
    )
    with torch.no_grad():
        for name, weight in dense_weights(bundle, task).items():
            part = model.get_submodule(name.replace("base_model", model.base_model_prefix, 1))
            upright = part.weight.shape == weight.shape and not hasattr(part, "nf")
            part.weight.copy_(weight if upright else weight.T)
            if name in bundle.dropped(task) and part.bias is not None:
                part.bias.zero_()
        found: npt.NDArray[np.float32] = model(torch.from_numpy(IDS)).logits.numpy()
    return found


def answers(bundle: Bundle, backend: str, order: list[str]) -> list[npt.NDArray[np.float32]]:
    found = []
    with wp.Engine.from_pretrained(bundle.path, backend=backend) as engine:
        for name in order:
            with engine.task(name) as module, torch.no_grad():
                if backend == "native":
                    found.append(module(input_ids=IDS, attention_mask=MASK)["logits"])
                else:
                    found.append(module(torch.from_numpy(IDS)).logits.float().numpy())
    return found


def test_tasks_drop_whole_half_layers_and_keep_all_of_the_others(bundle: Bundle) -> None:
    blocks = {entry.name: bundle.manifest.grid(entry).count for entry in bundle.manifest.weights}
    for task in bundle.manifest.tasks:
        gone, tables = bundle.dropped(task.name), bundle.tables(task.name)
        assert task.dropped
        kept = {name: len(table.col_indices) for name, table in tables.items()}
        assert kept == {name: 0 if name in gone else count for name, count in blocks.items()}
        assert task.sparsity == pytest.approx(1 - sum(kept.values()) / sum(blocks.values()))
    assert bundle.task("animals").sparsity > bundle.task("numbers").sparsity > 0.1


@pytest.mark.parametrize("backend", ["torch", *["native"] * bool(NATIVE)])
def test_either_backend_gives_what_transformers_gives(bundle: Bundle, backend: str) -> None:
    order = ["animals", "numbers", "animals", "numbers", "numbers", "animals"]
    found = answers(bundle, backend, order)
    for name, logits in zip(order, found, strict=True):
        wanted = plain(bundle, name)
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
        assert np.array_equal(logits, answers(bundle, backend, [name])[0])


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_texts_are_continued_with_the_cache_that_a_task_needs(bundle: Bundle) -> None:
    texts = {}
    for backend in ("torch", "native"):
        with wp.Engine.from_pretrained(bundle.path, backend=backend) as engine:
            for name in ("animals", "numbers", "animals"):
                texts[backend, name] = engine.predict(name, ["cat dog"], max_new_tokens=12)[0].text
    assert texts["torch", "animals"] == texts["native", "animals"]
    assert texts["torch", "numbers"] == texts["native", "numbers"]
    with wp.Engine.from_pretrained(bundle.path, backend="native") as engine:
        for task in bundle.manifest.tasks:
            with engine.task(task.name) as module:
                lost = sum("attn" in name for name in task.dropped)
                assert module.cache.token_bytes == (4 - lost) * whole_token_bytes(bundle) // 4


def whole_token_bytes(bundle: Bundle) -> int:
    """Keys and values of a token of the model, all layers, in float32."""
    config = json.loads((Path(bundle.path) / "model" / "config.json").read_text())
    return 2 * 4 * 4 * (16 if config["model_type"] == "llama" else 32)


@pytest.mark.parametrize("backend", ["torch", *["native"] * bool(NATIVE)])
def test_any_sequence_of_switches_in_little_memory_gives_the_same_bits(bundle: Bundle, backend: str) -> None:
    alone = {name: answers(bundle, backend, [name])[0] for name in bundle.tasks}
    order = np.random.default_rng(0).choice([*bundle.tasks], 20)
    with wp.Engine.from_pretrained(bundle.path, backend=backend, budget=smallest_budget(bundle)) as engine:
        for number, name in enumerate(order):
            with engine.task(str(name), wait=bool(number % 2)) as module, torch.no_grad():
                if backend == "native":
                    found = module(input_ids=IDS, attention_mask=MASK)["logits"]
                else:
                    found = module(torch.from_numpy(IDS)).logits.float().numpy()
            assert np.array_equal(found, alone[str(name)])


def sealed(path: Path, manifest: Mapping[str, Any]) -> Path:
    """A bundle with another manifest; its hash fits."""
    text = json.dumps(manifest).encode()
    (path / "manifest.json").write_bytes(text)
    (path / "manifest.blake3").write_bytes(blake3(text).hexdigest().encode() + b"\n")
    return path


def rewritten(bundle: Bundle, folder: Path, tasks: Mapping[str, Mapping[str, Any]]) -> Path:
    """A bundle whose manifest says something else of its tasks."""
    target = folder / "b.bundle"
    target.mkdir()
    for path in sorted(Path(bundle.path).rglob("*")):
        to = target / path.relative_to(bundle.path)
        to.mkdir() if path.is_dir() else to.write_bytes(path.read_bytes())
    manifest = json.loads((target / "manifest.json").read_bytes())
    for task in manifest["tasks"]:
        task.update(tasks.get(task["name"], {}))
    return sealed(target, manifest)


@pytest.mark.parametrize(
    ("dropped", "message"),
    [
        (["base_model.nowhere"], "with paged weights"),
        ([""], "dropped"),
        (["base_model.layers.3", "base_model.layers.3.mlp"], "lie in no other"),
        (["base_model.layers.3"] * 2, "differ and lie in no other"),
        (["base_model"], "no blocks of base_model.layers"),
        ([f"base_model.layers.{number}" for number in range(2000)], "dropped"),
        ("base_model", "dropped"),
    ],
)
def test_manifests_that_drop_what_is_not_there_or_is_kept_are_refused(
    dropped: Any, message: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = small(tmp_path_factory)
    with pytest.raises(BundleFormatError, match=message):
        Bundle.open(rewritten(bundle, tmp_path, {"animals": {"dropped": dropped}}))


_SMALL: list[Bundle] = []


def small(factory: pytest.TempPathFactory) -> Bundle:
    if not _SMALL:
        folder = factory.mktemp("small")
        _SMALL.append(compiled(folder, llama(folder / "model"), units="layer"))
    return _SMALL[0]


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_native_code_refuses_zeros_that_are_not_added_to_anything(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = small(tmp_path_factory)
    dropped = [f"{bundle.task('animals').dropped[0]}.self_attn.q_proj"]
    path = rewritten(bundle, tmp_path, {"animals": {"dropped": dropped}})
    with pytest.raises(BundleFormatError, match=r"tasks.animals.dropped.*their zeros in attention"):
        wp.Engine.from_pretrained(path, backend="native").close()


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_native_code_refuses_zeros_that_are_added_to_something_smaller(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each token's sum is the same, and counts; of the smaller value there is one."""
    path = rewritten(small(tmp_path_factory), tmp_path, {})
    name = graph_file("language-modeling")
    graph = read_graph(name, (path / name).read_bytes())
    last = Bundle.open(path).task("animals").dropped[-1]
    at = next(
        at
        for at, node in enumerate(graph.nodes)
        if node.op == "linear" and node.inputs[1] == Operand.parameter(f"{last}.mlp.down_proj.weight")
    )
    stream, zeros = Operand.value("v0"), Operand.value(graph.nodes[at].output)
    more = [
        Node("mean", (stream,), {"axes": [1], "keep": True}, ("v9000",)),
        Node("add", (zeros, Operand.value("v9000")), {"scalar": None}, ("v9001",)),
        Node("cumsum", (Operand.value("v9001"),), {"axis": 1}, ("v9002",)),
        Node("add", (Operand.value("v9002"), stream), {"scalar": None}, ("v9003",)),
    ]
    behind = [
        replace(node, inputs=tuple(Operand.value("v9003") if each == zeros else each for each in node.inputs))
        for node in graph.nodes[at + 1 :]
    ]
    content = write_graph(replace(graph, nodes=(*graph.nodes[: at + 1], *more, *behind)))
    (path / name).write_bytes(content)
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"][name] = {"bytes": len(content), "blake3": blake3(content).hexdigest()}
    sealed(path, manifest)
    with pytest.raises(BundleFormatError, match=r"tasks.animals.dropped.*sum's shape \[2, 3, 32\].*v9000 \[2, 1, 32\]"):
        wp.Engine.from_pretrained(path, backend="native").close()


def test_whole_layers_are_dropped(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = small(tmp_path_factory)
    for task in bundle.manifest.tasks:
        assert len(task.dropped) == 2
        assert all(name.rpartition(".")[0] == "base_model.layers" for name in task.dropped)


@pytest.mark.parametrize(
    ("attention", "feed_forward", "others", "words"),
    [
        ("", "", "", ""),
        ("3 7 8 9", "2", "", "attention 3, 7-9; feed-forward 2"),
        ("", "0 1 4", "a.pooler", "feed-forward 0-1, 4; a.pooler"),
        ("9 10 12", "9 10 12", "", "layers 9-10, 12"),
        ("0.1 1.0 1.1 1.2", "0.1 1.0 1.1 1.2", "", "layers 0.1, 1.0-1.2"),
    ],
)
def test_dropped_layers_are_said_in_few_words(attention: str, feed_forward: str, others: str, words: str) -> None:
    assert DroppedParts(attention.split(), feed_forward.split(), others.split()).words == words


def test_inspect_says_what_each_task_drops(
    weightpager: Command, bundle: Bundle, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layers = small(tmp_path_factory)
    for of in (bundle, layers):
        shown = weightpager("inspect", of.path).out
        for task in json.loads(weightpager("inspect", of.path, "--json").out)["tasks"]:
            gone, names = DroppedParts.of(of, task["name"]), of.dropped(task["name"])
            assert task["dropped"] == vars(gone)
            assert not gone.others
            for numbers, attends in ((gone.attention, True), (gone.feed_forward, False)):
                of_part = {name.split(".")[2] for name in names if ("attn" in name) == attends}
                assert list(numbers) == sorted(of_part)
            assert f"dropped whole: {task['name']}: {gone.words}\n" in shown
            assert of is bundle or gone.words.startswith("layers ")
    some = f"{layers.task('animals').dropped[0]}.self_attn.q_proj"
    odd = Bundle.open(rewritten(layers, tmp_path, {"animals": {"dropped": [some]}}))
    assert DroppedParts.of(odd, "animals").words == some


def test_a_task_that_drops_everything_is_its_residual_stream(tmp_path: Path) -> None:
    bundle = compiled(tmp_path, llama(tmp_path / "model"), sparsity=0.999)
    assert all(len(bundle.pages_of(task)) == 0 for task in bundle.tasks)
    with torch.no_grad():
        wanted = plain(bundle, "animals")
    for backend in ("torch", *["native"] * bool(NATIVE)):
        (found,) = answers(bundle, backend, ["animals"])
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))
        with wp.Engine.from_pretrained(bundle.path, backend=backend) as engine:
            assert engine.predict("animals", ["cat dog", "dog"], max_new_tokens=4)[0].text is not None


def test_exported_layers_are_left_out_or_zeros(
    bundle: Bundle, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for of in (bundle, small(tmp_path_factory)):
        for task in of.manifest.tasks:
            exported = export_task(of, task.name, tmp_path / f"{of.path.parent.name}-{task.name}")
            model: Any = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
            left_out = layers_left_out(of, task.name)
            assert model.config.num_hidden_layers == 4 - sum(map(len, left_out.values()))
            if of is not bundle:
                assert left_out == {"base_model.layers": sorted(int(name[-1]) for name in task.dropped)}
            with torch.no_grad():
                found = model(torch.from_numpy(IDS)).logits.numpy()
            wanted = plain(of, task.name)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


def test_what_an_exported_directory_lacks_is_found_once(
    weightpager: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    of, asked = small(tmp_path_factory), []

    def counted(bundle: Bundle, task: str) -> dict[str, list[int]]:
        asked.append(task)
        return layers_left_out(bundle, task)

    monkeypatch.setattr(export, "layers_left_out", counted)
    done = weightpager("export", of.path, "-t", "animals", "--out", tmp_path / "out", "--json")
    assert asked == ["animals"]
    dropped = sorted(int(name.rpartition(".")[2]) for name in of.task("animals").dropped)
    assert json.loads(done.out)["left_out"] == dropped
    assert AutoConfig.from_pretrained(tmp_path / "out").num_hidden_layers == 4 - len(dropped)


def modern_bert(folder: Path) -> Path:
    """Its first layer is of no use, and is the only one without a norm before its attention."""
    torch.manual_seed(0)
    config = config_of("ModernBert", {**ENCODERS["ModernBert"], "initializer_range": 0.5})
    model: Any = ModernBertModel(config)
    for number in range(1, config.num_hidden_layers):
        torch.nn.init.normal_(model.layers[number].attn_norm.weight)
    for part in (model.layers[0].attn.Wo, model.layers[0].mlp.Wo):
        torch.nn.init.zeros_(part.weight)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_layers_that_would_be_others_under_new_numbers_are_exported_as_zeros(tmp_path: Path) -> None:
    content = tiny.assistant(
        tmp_path, model=str(modern_bert(tmp_path / "model")), units="layer", dtype="float32", sparsity=0.5
    )
    content["tasks"] = {"animal": content["tasks"]["animal"]}
    of = wp.compile(content, tmp_path / "a.bundle", cache=False)
    assert of.task("animal").dropped == ["base_model.layers.0"]
    assert layers_left_out(of, "animal") == {}
    exported = export_task(of, "animal", tmp_path / "animal")
    model: Any = AutoModelForSequenceClassification.from_pretrained(exported, dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(torch.from_numpy(IDS)).logits.numpy()
    np.testing.assert_allclose(found, answers(of, "torch", ["animal"])[0], rtol=1e-5, atol=1e-6)


def same(one: Path, other: Path, task: str) -> bool:
    """Whether a task of two bundles gives the same bits, on all backends."""
    return all(
        np.array_equal(*(answers(Bundle.open(path), backend, [task])[0] for path in (one, other)))
        for backend in ("torch", *["native"] * bool(NATIVE))
    )


def test_bundles_that_are_repacked_and_grown_drop_the_same(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    start = small(tmp_path_factory)
    repack(start.path, tmp_path / "b.bundle", page=8192)
    repacked = Bundle.open(tmp_path / "b.bundle")
    (tmp_path / "model").symlink_to(start.path.parent / "model")
    content = tiny.writer(tmp_path, model=str(start.path.parent / "model"), units="half-layer", compare="none")
    content["tasks"] = {"weather": tiny.text(tmp_path, "weather", tiny.WORDS[6:9])}
    del content["dtype"], content["block"], content["page"]
    grown = wp.compile(content, tmp_path / "c.bundle", base=repacked.path, cache=False)
    for task in start.manifest.tasks:
        assert repacked.task(task.name).dropped == grown.task(task.name).dropped == task.dropped
        assert same(start.path, repacked.path, task.name)
        assert same(start.path, grown.path, task.name)
    assert grown.task("weather").dropped
    wanted = plain(grown, "weather")
    for backend in ("torch", *["native"] * bool(NATIVE)):
        order = ["weather", "animals", "weather", "numbers", "weather"]
        found = answers(grown, backend, order)
        assert np.array_equal(found[0], found[2])
        assert np.array_equal(found[0], found[4])
        np.testing.assert_allclose(found[0], wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
@pytest.mark.parametrize("which", ["encoder", "images", "pictures"])
def test_backends_agree_on_other_models(which: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"units": "half-layer", "dtype": "float32", "compare": "none", "sparsity": 0.4}
    makes: dict[str, Any] = {"encoder": tiny.assistant, "images": tiny.camera, "pictures": tiny_llava.watcher}
    made = wp.compile(makes[which](tmp_path, **changes), tmp_path / "a.bundle", cache=False)
    assert all(task.dropped for task in made.manifest.tasks)
    assert not any("vision_tower" in name for task in made.manifest.tasks for name in task.dropped)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32)
    inputs = {"input_ids": IDS, "attention_mask": MASK} if which != "images" else {"pixel_values": pixels}
    found: dict[str, list[npt.NDArray[np.float32]]] = {"torch": [], "native": []}
    for backend, logits in found.items():
        with wp.Engine.from_pretrained(made.path, backend=backend) as engine:
            for name in (*made.tasks, *made.tasks):
                with engine.task(name) as module, torch.no_grad():
                    if backend == "native":
                        logits.append(module(**inputs)["logits"])
                    else:
                        logits.append(module(**{k: torch.from_numpy(v) for k, v in inputs.items()}).logits.numpy())
    for one, other in zip(found["torch"], found["native"], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(np.abs(one).max()))


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_what_is_left_is_trained_without_what_was_dropped(tmp_path: Path) -> None:
    recover = {"method": "finetune", "steps": 4, "private_blocks": 0.1, "private_steps": 2, "batch": 8}
    made = compiled(tmp_path, gpt2(tmp_path / "model"), recover=recover, sparsity=0.4)
    for task in made.manifest.tasks:
        assert task.dropped
        torchs, natives = (answers(made, backend, [task.name])[0] for backend in ("torch", "native"))
        np.testing.assert_allclose(torchs, natives, rtol=0, atol=1e-5 * float(np.abs(torchs).max()))
        report = next(score for score in read_report(made).tasks if score.name == task.name)
        assert report.sparse < 40  # as good as chance at worst: what it learnt is what runs

"""Mutants of bundles, a few hundred of them, and by name what the fuzzer has found."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers

import weightpager as wp
from benchmarks.fuzz import config_changes, trial
from benchmarks.fuzz.campaign import Campaign
from benchmarks.fuzz.mutant import Original
from benchmarks.fuzz.sealing import entry, rewrite_file, rewrite_manifest, rewrite_tensors
from benchmarks.fuzz.trial import Plan, attempt
from weightpager.backends.torch.architecture import read_config, tokenizer
from weightpager.backends.torch.parameters import read_parameters
from weightpager.backends.verify import Verification, verify
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import REPORT, RESIDENT
from weightpager.bundle.model_files import model_dir
from weightpager.bundle.report.advice import advise
from weightpager.bundle.report.compile_report import read_report
from weightpager.errors import BundleError, BundleFormatError
from weightpager.kernels.choice import NATIVE
from weightpager.readers.image_reader import open_image_reader

MUTANTS = 300


@pytest.fixture
def copy(assistant_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(assistant_bundle, tmp_path / "copy.bundle"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mutants_work_or_are_refused(
    assistant_bundle: Path, writer_bundle: Path, camera_bundle: Path, tmp_path: Path
) -> None:
    originals = [Original.of(path) for path in (assistant_bundle, writer_bundle, camera_bundle)]
    campaign = Campaign(originals, 7, tmp_path)
    outcomes = Counter()
    for number in range(MUTANTS):
        result = campaign.try_one(number)
        outcomes[result.outcome] += 1
        assert result.outcome != "failure", f"{number}: {result}"
    assert outcomes["refused"] > MUTANTS / 2
    assert outcomes["accepted"] > MUTANTS / 20


def test_a_mutant_is_drawn_again_from_its_number(assistant_bundle: Path, tmp_path: Path) -> None:
    campaign = Campaign([Original.of(assistant_bundle)], 7, tmp_path)
    for number in range(5):
        assert campaign.try_one(number) == campaign.try_one(number)


def test_the_fuzzer_notices_what_verify_misses(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite_file(copy, RESIDENT, b"{}")
    assert attempt(copy, Plan(verify=True, native=False, engine=False, task=0)).failures == {}
    monkeypatch.setattr("benchmarks.fuzz.trial.verify", lambda _: Verification(1, 1, ()))
    assert "resident" in attempt(copy, Plan(verify=True, native=False, engine=False, task=0)).failures


def test_the_fuzzer_notices_what_reaches_out() -> None:
    with trial.watched() as reached:
        subprocess.run(["true"], check=True)
        with pytest.raises(ConnectionRefusedError), socket.socket() as client:
            client.connect(("127.0.0.1", 1))
    assert {event.split()[0] for event in reached} >= {"subprocess.Popen", "socket.connect"}
    subprocess.run(["true"], check=True)


@pytest.mark.parametrize(
    "name", ["model/config.json", "model/generation_config.json", "model/preprocessor_config.json"]
)
def test_the_fuzzer_knows_configurations(name: str) -> None:
    changed = {config_changes.change(name, b'{"hidden_size": 64}', Random(seed))[0] for seed in range(50)}
    assert len(changed) > 25


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [as_fifo, as_endless])
@pytest.mark.parametrize("name", ["manifest.json", "manifest.blake3", "pages-0000.safetensors"])
def test_what_is_no_ordinary_file_is_not_waited_for(copy: Path, make: Callable[[Path], None], name: str) -> None:
    make(copy / name)
    with pytest.raises(BundleError, match="no ordinary file"):
        Bundle.open(copy)


@pytest.mark.parametrize("make", [as_fifo, as_endless])
@pytest.mark.parametrize("name", ["report.json", RESIDENT, "model/config.json"])
def test_nor_where_it_seems_as_empty_as_the_manifest_says(copy: Path, make: Callable[[Path], None], name: str) -> None:
    make(copy / name)
    rewrite_manifest(copy, lambda manifest: manifest["files"].update({name: entry(b"")}))
    assert any(name in problem and "no ordinary file" in problem for problem in verify(copy).problems)


def test_a_fifo_that_the_manifest_does_not_list_is_refused(copy: Path) -> None:
    os.mkfifo(copy / "model/special_tokens_map.json")
    with pytest.raises(BundleFormatError, match="extra file"):
        wp.Engine.from_pretrained(copy)


def test_a_link_to_a_directory_of_unlisted_files_is_refused(copy: Path) -> None:
    (copy / "model/chat_templates").symlink_to("/etc")
    with pytest.raises(BundleFormatError, match="extra file"):
        wp.Engine.from_pretrained(copy)


def test_a_bundle_without_a_configuration_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "model")
    rewrite_manifest(
        copy, lambda m: m.update(files={name: of for name, of in m["files"].items() if not name.startswith("model/")})
    )
    with pytest.raises(BundleFormatError, match=r"model/config\.json"):
        wp.Engine.from_pretrained(copy)


def test_a_huge_manifest_is_not_read(copy: Path) -> None:
    os.truncate(copy / "manifest.json", 1 << 40)
    with pytest.raises(BundleFormatError, match="at most"):
        Bundle.open(copy)


def test_bytes_after_the_manifests_hash_are_noticed(copy: Path) -> None:
    with (copy / "manifest.blake3").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BundleFormatError, match="BLAKE3"):
        Bundle.open(copy)


def change_report(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    report = json.loads((bundle / "report.json").read_bytes())
    change(report)
    rewrite_file(bundle, "report.json", json.dumps(report).encode())


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report["tasks"][0].update(name="nobody"),
        lambda report: report["tasks"][0].update(metric="perplexity", dense=0.0),
        lambda report: report["controls"][0]["scores"].clear(),
        lambda report: report["over_read"].clear(),
        lambda report: report["controls"][0].update(resident_bytes=10**400),
    ],
)
def test_a_report_that_nothing_can_be_advised_from_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    change_report(copy, change)
    with pytest.raises(BundleFormatError, match="report"):
        read_report(Bundle.open(copy))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("tasks/animal/private.safetensors", "classifier.bias"),
        (RESIDENT, "base_model.encoder.layer.0.attention.output.dense.bias"),  # of a paged weight
    ],
)
def test_integers_in_place_of_a_parameter_are_refused(copy: Path, file: str, name: str) -> None:
    def whole(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name].to(torch.int32)

    rewrite_tensors(copy, file, whole)
    with wp.Engine.from_pretrained(copy) as engine, pytest.raises(BundleFormatError, match="float32 or bfloat16"):
        engine.activate("animal")


@pytest.mark.parametrize("shape", [[0, 2**63], [2**64 - 1, 0]])
def test_a_shape_that_torch_has_no_numbers_for_is_refused(copy: Path, shape: list[int]) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    rewrite_file(copy, RESIDENT, len(header).to_bytes(8, "little") + header)
    with pytest.raises(BundleFormatError, match="safetensors"):
        read_parameters(Bundle.open(copy), RESIDENT)


def test_a_tokenizer_that_cannot_be_used_is_refused(copy: Path) -> None:
    config = json.loads((copy / "model/tokenizer_config.json").read_bytes())
    changed = json.dumps(config | {"model_max_length": "[UNK]"}).encode()
    rewrite_file(copy, "model/tokenizer_config.json", changed)
    with pytest.raises(BundleFormatError, match="tokenizer"):
        tokenizer(Bundle.open(copy))


def test_a_tokenizer_that_gives_no_mask_works(writer_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(writer_bundle, tmp_path / "writer.bundle"))
    config = json.loads((copy / "model/tokenizer_config.json").read_bytes())
    changed = json.dumps(config | {"model_input_names": ["input_ids"]}).encode()
    rewrite_file(copy, "model/tokenizer_config.json", changed)
    answers = []
    for path in (writer_bundle, copy):
        with wp.Engine.from_pretrained(path) as engine:
            task = next(iter(engine.bundle.tasks.values()))
            answers.append(engine.predict(task.name, ["red cat"]))
    assert answers[0] == answers[1]


def test_a_tokenizer_that_panics_is_refused(copy: Path) -> None:
    content = json.loads((copy / "model/tokenizer.json").read_bytes())
    content["post_processor"]["single"][2]["SpecialToken"]["id"] = "["
    rewrite_file(copy, "model/tokenizer.json", json.dumps(content).encode())
    with pytest.raises(BundleFormatError, match="tokenizer"):
        tokenizer(Bundle.open(copy))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["tasks"][0].update(classes=[]),
        lambda manifest: manifest["transitions"][0].reverse(),
        lambda manifest: manifest["transitions"][1].__setitem__(0, 0.9),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    rewrite_manifest(copy, change)
    with pytest.raises(BundleFormatError, match="classes|transition"):
        Bundle.open(copy)


def test_a_report_compares_controls_on_tasks_alone(copy: Path) -> None:
    report = json.loads((copy / REPORT).read_bytes()) | {"tasks": [], "controls": []}
    rewrite_file(copy, REPORT, json.dumps(report).encode())
    opened = Bundle.open(copy)
    assert advise(opened, read_report(opened), None) is None
    control = {"name": "int8", "resident_bytes": 1, "scores": {}}
    rewrite_file(copy, REPORT, json.dumps(report | {"controls": [control]}).encode())
    with pytest.raises(BundleFormatError, match="a task that controls are compared on"):
        read_report(Bundle.open(copy))


def test_a_configuration_that_a_later_transformers_wrote_is_refused(copy: Path) -> None:
    config = json.loads((copy / "model/config.json").read_bytes())
    major = int(transformers.__version__.split(".")[0])
    for version in (f"{major}.999.0", "4.0.0", "", "x", "9", "9" * 5000, 7, None):
        rewrite_file(copy, "model/config.json", json.dumps(config | {"transformers_version": version}).encode())
        read_config(Bundle.open(copy))
    rewrite_file(copy, "model/config.json", json.dumps(config | {"transformers_version": f"{major + 1}.0.1"}).encode())
    expected = (
        f"transformers_version: expected one that {transformers.__version__} reads, found {major + 1}.0.1; update"
    )
    with pytest.raises(BundleFormatError, match=re.escape(expected)):
        read_config(Bundle.open(copy))


@pytest.mark.parametrize("name", ["model/tokenizer_config.json", "model/config.json"])
def test_half_of_a_surrogate_pair_as_a_key_is_refused(copy: Path, name: str) -> None:
    changed = (copy / name).read_bytes().replace(b"{", rb'{"\ud800": 1, ', 1)
    rewrite_file(copy, name, changed)
    with pytest.raises(BundleFormatError, match="expected texts in Unicode"):
        model_dir(Bundle.open(copy))


def test_a_configuration_with_nan_is_refused(copy: Path) -> None:
    config = json.loads((copy / "model/config.json").read_bytes())
    rewrite_file(copy, "model/config.json", json.dumps(config | {"classifier_dropout": float("nan")}).encode())
    with pytest.raises(BundleFormatError, match="NaN"):
        read_config(Bundle.open(copy))


needs_native = pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")


def is_refused(bundle: Path, words: str) -> None:
    """By an engine of native code that opens it, and by `verify`, in the same words."""
    with pytest.raises(BundleFormatError, match=words) as refusal:
        wp.Engine.from_pretrained(bundle, backend="native")
    assert verify(bundle).problems == (refusal.value.plain,)


@needs_native
@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("animal", lambda names: names.pop(0), r"expected float32 \[2, 1\] for .* 1 classes, found float32 \[2, 2\]$"),
        ("animal", lambda names: names.append("cow"), r"expected float32 \[2, 3\] for .*, found float32 \[2, 2\]$"),
        ("colour", lambda names: names.pop(), r"expected float32 \[2, 3, \d\] for .*, found float32 \[2, 3, \d\]$"),
    ],
)
def test_a_head_that_does_not_fit_its_classes_is_refused(
    copy: Path, task: str, change: Callable[[list[str]], object], words: str
) -> None:
    def other(manifest: dict[str, Any]) -> None:
        change(next(each["classes"] for each in manifest["tasks"] if each["name"] == task))

    rewrite_manifest(copy, other)
    is_refused(copy, f"tasks/{task}: logits: {words}")


@needs_native
def test_a_head_of_images_that_does_not_fit_is_refused(camera_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(camera_bundle, tmp_path / "copy.bundle"))
    rewrite_manifest(copy, lambda manifest: manifest["tasks"][0]["classes"].pop(0))
    is_refused(copy, r"tasks/colour: logits: expected float32 \[2, 2\] .*, found float32 \[2, 3\]$")


@needs_native
@pytest.mark.parametrize(
    ("words", "expected"),
    [(15, r"logits: expected float32 \[2, 3, 15\] .* 15 tokens, found"), (17, "embed_tokens.weight: expected 17 rows")],
)
def test_a_vocabulary_of_another_size_than_its_tables_is_refused(
    writer_bundle: Path, tmp_path: Path, words: int, expected: str
) -> None:
    copy = Path(shutil.copytree(writer_bundle, tmp_path / "copy.bundle"))
    config = json.loads((copy / "model/config.json").read_bytes())
    rewrite_file(copy, "model/config.json", json.dumps(config | {"vocab_size": words}).encode())
    is_refused(copy, expected)


OWN, NORM = "tasks/animal/private.safetensors", "base_model.embeddings.LayerNorm.weight"


@needs_native
@pytest.mark.parametrize(
    ("file", "name", "change", "words"),
    [
        (OWN, "classifier.bias", lambda _: None, r"tasks/animal: classifier\.bias: expected a value, .*, found none$"),
        (
            OWN,
            "classifier.weight",
            lambda x: x[:-1],
            "linear of classifier.weight, classifier.bias.*: operand 2: expected",
        ),
        (OWN, "classifier.weight", lambda x: x.T.contiguous(), r"operand 0: expected .*, found \[2, "),
        (OWN, "classifier.weight", lambda x: x.to(torch.uint8), "expected one of float32, bfloat16, .*, found uint8$"),
        (
            OWN,
            "classifier.weight",
            lambda x: x.to(torch.int64),
            "linear of classifier.weight.*: operand 1: expected a weight",
        ),
        (RESIDENT, NORM, lambda _: None, f"tasks/animal: {NORM}: expected a value, .*, found none$"),
        (RESIDENT, NORM, lambda x: x[:-1], f"layer_norm of {NORM}.*: operand"),
        (RESIDENT, NORM, lambda x: x.reshape(2, -1), f"layer_norm of {NORM}.*: operand"),
    ],
)
def test_parameters_that_do_not_fit_their_graph_are_refused(
    copy: Path, file: str, name: str, change: Callable[[torch.Tensor], torch.Tensor | None], words: str
) -> None:
    def other(tensors: dict[str, torch.Tensor]) -> None:
        changed = change(tensors.pop(name))
        if changed is not None:
            tensors[name] = changed

    rewrite_tensors(copy, file, other)
    is_refused(copy, words)


def change_graph(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    name = "model/graph-text-classification.json"
    graph = json.loads((bundle / name).read_bytes())
    change(graph)
    rewrite_file(bundle, name, json.dumps(graph).encode())


@needs_native
def test_a_paged_weight_of_another_shape_than_its_graph_takes_is_refused(copy: Path) -> None:
    def other(graph: dict[str, Any]) -> None:
        products = [node for node in graph["nodes"] if node["op"] == "linear" and "parameter" in node["inputs"][1]]
        wide, narrow = (next(node["inputs"] for node in products if part in str(node)) for part in ("mediate", "query"))
        narrow[1] = wide[1]

    change_graph(copy, other)
    with pytest.raises(BundleFormatError, match="model/graph-text-classification.json: v[0-9]+: "):
        wp.Engine.from_pretrained(copy, backend="native")
    assert "model/graph-text-classification.json: v" in verify(copy).problems[0]


@needs_native
def test_a_number_that_is_no_row_of_a_table_is_an_error_of_the_bundle(copy: Path) -> None:
    """Which a graph's shapes don't show."""

    def other(graph: dict[str, Any]) -> None:
        graph["constants"].append({"dtype": "int64", "shape": [1, 1], "data": [1 << 40]})
        node = next(node for node in graph["nodes"] if node["op"] == "embedding" and "input" not in node["inputs"][1])
        node["inputs"][1] = {"constant": len(graph["constants"]) - 1}

    change_graph(copy, other)
    with (
        wp.Engine.from_pretrained(copy, backend="native") as engine,
        pytest.raises(BundleFormatError, match="model/graph-text-classification.json: nodes: .* found .*ids from 0"),
    ):
        engine.predict("animal", ["red cat"])


@needs_native
def test_a_changed_task_that_does_not_fit_is_refused_by_a_reload(copy: Path) -> None:
    with wp.Engine.from_pretrained(copy, backend="native") as engine:
        before = engine.predict("number", ["one two"])
        rewrite_manifest(copy, lambda manifest: manifest["tasks"][0]["classes"].pop())
        with pytest.raises(BundleFormatError, match="tasks/animal: logits: expected"):
            engine.reload()
        assert engine.predict("number", ["one two"]) == before


def test_verify_refuses_a_tokenizer_that_an_engine_refuses(copy: Path) -> None:
    content = json.loads((copy / "model/tokenizer.json").read_bytes())
    content["model"]["type"] = "BPE"
    rewrite_file(copy, "model/tokenizer.json", json.dumps(content).encode())
    with wp.Engine.from_pretrained(copy) as engine, pytest.raises(BundleFormatError) as refusal:
        engine.predict("animal", ["red cat"])
    assert verify(copy).problems == (refusal.value.plain,)


def test_verify_refuses_an_image_processor_that_an_engine_refuses(camera_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(camera_bundle, tmp_path / "copy.bundle"))
    name = "model/preprocessor_config.json"
    config = json.loads((copy / name).read_bytes())
    rewrite_file(copy, name, json.dumps(config | {"image_mean": [0.5, 0.5]}).encode())
    with pytest.raises(BundleFormatError, match="an image processor that works") as refusal:
        open_image_reader(Bundle.open(copy))
    assert verify(copy).problems == (refusal.value.plain,)

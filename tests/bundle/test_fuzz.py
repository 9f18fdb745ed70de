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
from benchmarks.fuzz import guard
from benchmarks.fuzz.campaign import Campaign
from benchmarks.fuzz.changes import config_change
from benchmarks.fuzz.original import Original
from benchmarks.fuzz.sealing import entry, rewrite_file, rewrite_manifest, rewrite_tensors
from benchmarks.fuzz.trial import Plan, attempt
from weightpager.backends.torch.model.architecture import read_config, tokenizer
from weightpager.backends.torch.parameters import read_parameters
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import REPORT, RESIDENT
from weightpager.bundle.report.compile_report import read_report
from weightpager.bundle.verify import Verification, verify
from weightpager.errors import BundleError, BundleFormatError

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
    assert attempt(copy, Plan(verify=True, engine=False, task=0)).failures == {}
    monkeypatch.setattr("benchmarks.fuzz.trial.verify", lambda _: Verification(1, 1, ()))
    assert "resident" in attempt(copy, Plan(verify=True, engine=False, task=0)).failures


def test_the_fuzzer_notices_what_reaches_out() -> None:
    with guard.watched() as reached:
        subprocess.run(["true"], check=True)
        with pytest.raises(ConnectionRefusedError), socket.socket() as client:
            client.connect(("127.0.0.1", 1))
    assert {event.split()[0] for event in reached} >= {"subprocess.Popen", "socket.connect"}
    subprocess.run(["true"], check=True)


@pytest.mark.parametrize(
    "name", ["model/config.json", "model/generation_config.json", "model/preprocessor_config.json"]
)
def test_the_fuzzer_knows_configurations(name: str) -> None:
    changed = {config_change.change(name, b'{"hidden_size": 64}', Random(seed))[0] for seed in range(50)}
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


def test_a_report_without_tasks_is_refused(copy: Path) -> None:
    report = json.loads((copy / REPORT).read_bytes())
    rewrite_file(copy, REPORT, json.dumps(report | {"tasks": []}).encode())
    with pytest.raises(BundleFormatError, match="at least one task"):
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


def test_a_configuration_with_nan_is_refused(copy: Path) -> None:
    config = json.loads((copy / "model/config.json").read_bytes())
    rewrite_file(copy, "model/config.json", json.dumps(config | {"classifier_dropout": float("nan")}).encode())
    with pytest.raises(BundleFormatError, match="NaN"):
        read_config(Bundle.open(copy))

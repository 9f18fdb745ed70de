"""Every benchmark that a page names runs: with a tiny bundle where that is enough, or else as far as its options."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OlmoeConfig, Qwen2Config

import tiny_pairs
import weightpager as wp
from benchmarks import experts, row_file
from benchmarks.device import __main__ as processes
from benchmarks.device.measured import read
from benchmarks.fleet.trials import trained_again
from benchmarks.kernels import __main__ as kernels
from benchmarks.prefetch import __main__ as prefetch
from tiny import llama, writer
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle
from weightpager.errors import ConfigError
from weightpager.kernels.choice import NATIVE
from weightpager_lab import synthetic_bundle, traces
from weightpager_lab.synthetic_bundle import Recipe, bundle_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

OPTIONS_ONLY = {
    "accuracy": "takes models and data from the network, and minutes",
    "accuracy.adapter": "as accuracy",
    "accuracy.fit": "test_fit_benchmark.py measures a tiny model",
    "accuracy.kept": "test_kept.py compiles a tiny model by each method",
    "accuracy.vocabulary": "as accuracy",
    "assistant": "as accuracy",
    "box": "test_box.py measures tiny bundles",
    "box.bundles": "as accuracy",
    "box.resident": "needs ONNX Runtime and llama.cpp",
    "compiling.cost": "as accuracy",
    "compiling.training": "as accuracy",
    "device": "needs ONNX Runtime",
    "device.adapters.onnxruntime_load": "needs ONNX Runtime",
    "device.any_size": "makes a model of 2 billion parameters",
    "device.decoder": "needs llama.cpp's file",
    "device.decoder.bundles": "takes a model from the network",
    "device.gguf_tokens": "needs llama.cpp",
    "device.images": "needs ONNX Runtime",
    "device.images.bundle": "compiles for minutes",
    "device.install": "needs a package index",
    "device.questions": "needs bundles of a model that is trained for an hour",
    "driving": "test_driving_benchmark.py makes its bundles",
    "fuzz": "tests/bundle/test_fuzz.py tries its mutants",
    "kills": "compiles for minutes",
    "published": "test_published.py measures a tiny shape",
    "ray_compile": "needs a cluster",
    "ray_serving": "needs a cluster",
    "results": "takes minutes for all methods, which tests/lab/contest tries",
}
"""Modules of which tests/test_docs.py asks for their options, and no test for more; and why."""


_CONFIG = Qwen2Config(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=1000,
    tie_word_embeddings=True,
    dtype=torch.bfloat16,
)
RECIPE = Recipe("tiny", _CONFIG, BlockShape(8, 16), tasks=3, density=0.5, common=0.4, page_bytes=4096)
MANY = replace(RECIPE, name="tiny-18", tasks=18)


@pytest.fixture(autouse=True)
def _a_device_s_backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WEIGHTPAGER_BACKEND")
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # as the fuzzer sets it, which would last


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """All synthetic bundles are tiny, and no trace comes from the network."""
    for name in ("half_billion", "small", "many_pages", "few_layers", "many_tasks"):
        monkeypatch.setattr(synthetic_bundle, name, lambda *_: RECIPE)
    monkeypatch.setattr(synthetic_bundle, "assistant_of_many", lambda: MANY)
    monkeypatch.setattr(synthetic_bundle, "half_billion_config", lambda: _CONFIG)
    monkeypatch.delitem(traces.TRACES, "mail")  # type: ignore[arg-type] # a dict


def run(monkeypatch: pytest.MonkeyPatch, module: str, *arguments: object) -> None:
    """As ``python -m benchmarks.MODULE`` does it, in this process."""
    monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'.*' found in sys.modules", RuntimeWarning)  # another test has imported it
        code = _exit_code(lambda: runpy.run_module(f"benchmarks.{module}", run_name="__main__", alter_sys=True))
    assert not code, f"benchmarks.{module} ended with {code}"


def _exit_code(run: Callable[[], object]) -> object:
    try:
        run()
    except SystemExit as ended:
        return ended.code
    return None


def named_modules() -> set[str]:
    """Modules whose commands pages name."""
    pages = subprocess.check_output(["git", "ls-files", "*.md"], cwd=ROOT, text=True).split()
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in pages if (ROOT / page).is_file()]
    return {name for text in texts for name in re.findall(r"python -m benchmarks\.([a-z_.]*[a-z_])", text)}


def test_every_named_benchmark_is_tried() -> None:
    own = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in named_modules() - OPTIONS_ONLY.keys() if f'"{name}"' not in own} == set()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("accuracy.page", ["--json", "docs/accuracy.json", "--out", "OUT/page.md"]),
        ("box.page", ["--json", "docs/box.json", "--out", "OUT/page.md"]),
        ("kernels.page", ["--json", "docs/kernels.json", "--out", "OUT/page.md"]),
        ("report", ["--json", "docs/results.json", "--out", "OUT/page.md"]),
        ("readme", ["--help"]),
        ("house", ["--json", "OUT/house.json"]),
    ],
)
def test_pages(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    run(monkeypatch, module, *(text.replace("OUT", str(tmp_path)) for text in arguments))
    assert module == "readme" or list(tmp_path.glob("*.*"))


@pytest.mark.parametrize(
    "module", ["switching", "switching.granularity", "switching.task_scaling", "kernels.calls", "serving"]
)
@pytest.mark.usefixtures("tiny")
def test_rows(module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = {"switching": ["--repeats", 1], "serving": ["--only", "crowd", "--minutes", 0.01]}
    run(monkeypatch, module, "--json", tmp_path / "rows.json", *options.get(module, []))
    assert json.loads((tmp_path / "rows.json").read_bytes())


@pytest.mark.usefixtures("tiny")
def test_switches_are_measured_beside_what_they_replace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "switching", "--json", tmp_path / "rows.json", "--repeats", 1, "--folder", tmp_path)
    rows = json.loads((tmp_path / "rows.json").read_bytes())
    pairs = [row for row in rows if row["whole_ms"]]
    assert len(pairs) == 6
    assert all(row["direct_gbps"] and row["load_ms"] for row in pairs)
    assert all(row["over_raw"] for row in pairs) == bool(NATIVE)
    assert [row["logits"] for row in rows if row["first_output_ms"]] == [1, 32]
    assert [row["budget"] for row in rows if row["resident_p99_ms"]] == [rows[0]["budget"]]


@pytest.mark.usefixtures("tiny")
def test_tables_and_plots(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(monkeypatch, "switching.eviction")
    run(monkeypatch, "prediction", "--switches", 60)
    run(monkeypatch, "prediction", "speed", "--switches", 60)
    assert "adversarial" in capsys.readouterr().out
    run(monkeypatch, "prefetch.plot", "--out", tmp_path / "plot.svg", "--folder", tmp_path)
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").startswith("<svg")


@pytest.mark.usefixtures("tiny")
def test_prefetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``"prefetch"``: one trace in virtual time, and some switches in real time."""
    for name, value in {"LEARNT": 12, "COUNTED": 12, "RECOVERY": 4, "REAL": 3}.items():
        monkeypatch.setattr(prefetch, name, value)
    bundle = bundle_of(MANY, tmp_path, lambda _: None)
    assert {row.policy for row in prefetch.virtual(bundle.path, "assistant", 0.25)} >= {"oracle", "liar"}
    if NATIVE:
        assert {row.mode for row in prefetch.of_assistant(bundle, tmp_path)} == {"virtual", "real"}


def test_answers_by_schemas(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    content = tiny_pairs.tasks(tmp_path, tiny_pairs.llama(tmp_path / "llama", max_position_embeddings=512))
    bundle = wp.compile(content, tmp_path / "pairs.bundle").path
    run(monkeypatch, "serving.schemas", bundle, "--rounds", 1)
    assert "all of them valid" in capsys.readouterr().out


def test_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``"kernels"``: one shape at one token, among few other weights."""
    monkeypatch.setattr(kernels, "ROTATED", 1 << 24)
    kernels.main(tmp_path / "rows.json", model=["MiniLM-L6"], tokens=[1], block=["16x32"], repeats=1)
    rows = kernels.read(tmp_path / "rows.json")
    assert len(rows) == len(kernels.DTYPES) * len(kernels.SPARSITIES)
    assert all(row.speedup > 0 and row.cpu == row_file.cpu() for row in rows)


@pytest.mark.usefixtures("tiny")
def test_a_whole_model_on_paged_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "kernels.generate", "--json", tmp_path / "rows.json", "--repeats", 1)
    rows = kernels.read(tmp_path / "rows.json")
    assert {row.kernel for row in rows} == {"prefill", "body", "decode"}


def test_a_mixture_of_experts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``"experts"``: a mixture of few and small ones."""
    small: Callable[..., Any] = lambda **settings: OlmoeConfig(  # noqa: E731
        **settings | {"hidden_size": 64, "intermediate_size": 64, "num_experts": 64, "num_experts_per_tok": 2,
                      "vocab_size": 300, "num_attention_heads": 4, "num_key_value_heads": 4}
    )  # fmt: skip
    monkeypatch.setattr(experts, "OlmoeConfig", small)
    monkeypatch.setattr(experts, "POOL", 1 << 20)
    for unit in experts.UNITS:
        experts.write(unit, 1, 2, tmp_path / unit)
        assert experts.measured(Bundle.open(tmp_path / unit))["decode_ms"] > 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="pulls are timed against curl")
def test_delivery(assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tries = ["--kills", 1, "--cuts", 1, "--mutants", 2, "--minutes", 1]
    run(monkeypatch, "fleet", assistant_bundle, *tries, "--json", tmp_path / "fleet.json", "--folder", tmp_path)
    assert json.loads((tmp_path / "fleet.json").read_bytes())


def test_a_task_that_is_trained_again_has_another_page_at_least(assistant_bundle: Path, tmp_path: Path) -> None:
    found = trained_again(assistant_bundle, tmp_path)
    assert all(figures["changed_bytes"] == figures["lacking_bytes"] > 0 for figures in found.values())


def test_a_task_without_pages_of_its_own_is_not_trained_again(tmp_path: Path) -> None:
    shared = bundle_of(replace(RECIPE, common=1.0), tmp_path, lambda _: None)
    with pytest.raises(ConfigError, match="expected pages that only the last task needs, found none"):
        trained_again(shared.path, tmp_path / "work")


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_what_a_process_has_resident(
    assistant_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, "device.steps", assistant_bundle, "animal", "16MiB", "cat")
    assert min(json.loads(capsys.readouterr().out).values()) > 0


@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_processes_of_two_bundles_with_the_same_tasks(assistant_bundle: Path, tmp_path: Path) -> None:
    found = tmp_path / "device.json"
    processes.main(assistant_bundle, found, all_blocks=assistant_bundle, only="native_", times=1)
    texts = read(found)["texts"]
    assert texts.rows.keys() == {"native_tasks", "native_all_blocks"}
    assert "with all blocks" in texts.about


@pytest.mark.slow
@pytest.mark.skipif(not NATIVE, reason="the native kernels are not built")
def test_processes_with_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama(tmp_path / "model")
    bundle = wp.compile(writer(tmp_path, model=model, sparsity=0, compare="none"), tmp_path / "a.bundle")
    file, options = tmp_path / "device.json", ["--count", "4", "--rank", "2", "--times", "1"]
    run(monkeypatch, "device.adapters", bundle.path, "--json", file, *options)
    rows = read(file)["adapters"].rows
    assert len(rows) == 6
    for name, row in rows.items():
        assert row["decode_per_s"] > 0
        assert ("ms_swap" in row) == (not name.startswith("native 2 adapters"))

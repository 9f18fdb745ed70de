"""lm-evaluation-harness on a task of a bundle: what it measures is what the task's module says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import tiny
import weightpager as wp
from weightpager.errors import BudgetError, ConfigError, UnknownTaskError

pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

PREFIX = 2  # the tiny tokenizer names no token that begins a text, and adds one at its end
TEXT = " ".join(tiny.WORDS[3:6] * 4)


def model(bundle: Path, **options: object) -> object:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from weightpager.harness import TaskLM

    return TaskLM(str(bundle), **{"prefix_token_id": PREFIX, "add_bos_token": False, **options})


def log_likelihood(bundle: Path, task: str, text: str) -> float:
    """By the engine alone."""
    with wp.Engine.from_pretrained(bundle) as engine, engine.task(task) as module, torch.inference_mode():
        ids = torch.tensor([[PREFIX, *engine.tokenizer().encode(text, add_special_tokens=False)]])
        scores = module(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        return float(scores.gather(1, ids[0, 1:, None]).sum())


@pytest.mark.parametrize("task", ["animals", "numbers"])
def test_the_harness_measures_what_the_task_says(writer_bundle: Path, task: str) -> None:
    asked = model(writer_bundle, task=task, budget="64MiB")
    from lm_eval.api.instance import Instance

    (found,) = asked.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (TEXT,), 0)])
    assert found == pytest.approx(log_likelihood(writer_bundle, task, TEXT), rel=1e-4)


def test_contexts_begin_as_the_tasks_prompts_do(writer_bundle: Path) -> None:
    asked = model(writer_bundle, task="animals", budget="64MiB", add_bos_token=None)
    context, rest = "cat dog", " cow cat"
    from lm_eval.api.instance import Instance

    ((found, _),) = asked.loglikelihood([Instance("loglikelihood", {}, (context, rest), 0)])
    assert asked.tokenizer(context)["input_ids"] == [PREFIX, 7, 8]
    assert found == pytest.approx(
        log_likelihood(writer_bundle, "animals", context + rest) - log_likelihood(writer_bundle, "animals", context),
        rel=1e-4,
    )


def test_the_harness_finds_the_model_by_its_name(writer_bundle: Path) -> None:
    model(writer_bundle, task="animals")
    from lm_eval.api.registry import get_model

    arguments = f"pretrained={writer_bundle},task=numbers,budget=64MiB,prefix_token_id={PREFIX}"
    made = get_model("weightpager").create_from_arg_string(arguments, {"batch_size": 2, "device": None})
    assert made.batch_size == 2


def test_what_cannot_be_measured_is_refused(writer_bundle: Path, assistant_bundle: Path) -> None:
    with pytest.raises(
        ConfigError, match="task animal: expected language-modeling or text-generation, found text-class"
    ):
        model(assistant_bundle, task="animal")
    with pytest.raises(UnknownTaskError, match="animals"):
        model(writer_bundle, task="animal")
    with pytest.raises(BudgetError):
        model(writer_bundle, task="animals", budget="1KiB")


@pytest.mark.slow
def test_the_command(writer_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"text": TEXT}) + "\n")
    task = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(task))
    arguments = f"pretrained={writer_bundle},task=animals,budget=64MiB,prefix_token_id={PREFIX},add_bos_token=False"
    command = [sys.executable, "-m", "weightpager.harness", "--model", "weightpager", "--model_args", arguments]
    places = ["--tasks", "words", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out.json")]
    options = ["--device", "cpu", "--batch_size", "2"]
    ran = subprocess.run([*command, *places, *options], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (written,) = tmp_path.glob("out*.json")
    found = json.loads(written.read_text())["results"]["words"]["word_perplexity,none"]
    expected = -log_likelihood(writer_bundle, "animals", TEXT) / len(TEXT.split())
    assert found == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-4)

"""Tasks that have no data of their own: the whole model, another task's blocks, or a system message before either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tiny
import weightpager as wp
from command import Command
from lora import lora
from running import Running, serving
from weightpager.backends.torch.export import export_task
from weightpager.backends.verify import verify
from weightpager.bundle import Bundle
from weightpager.bundle.addition import Addition, add_task
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler import task_file
from weightpager.errors import CompileError, ConfigError
from weightpager.kernels.choice import NATIVE
from weightpager.server.scheduling.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT, of transformers

BACKENDS = ["torch", *(["native"] if NATIVE else [])]
CHAT = {"kind": "text-generation", "max_new_tokens": 4}
SYSTEM = "cow cow"
ASKED = [{"role": "user", "content": "red cat"}]
WITH_OWN = [{"role": "system", "content": "sun"}, *ASKED]


def model(folder: Path, template: str | None = tiny.TEMPLATE, words: int = 16) -> str:
    own, path = tiny.tokenizer(), tiny.llama(folder / "model")
    if words > 16:
        config = LlamaConfig.from_pretrained(path, vocab_size=words, tie_word_embeddings=False)
        LlamaForCausalLM(config).save_pretrained(path)
    own.eos_token, own.chat_template = "[SEP]", template
    own.save_pretrained(path)
    return str(path)


def content(folder: Path, **tasks: dict[str, Any]) -> dict[str, Any]:
    return {"model": model(folder), "block": "8x8", "page": "4KiB", "dtype": "int4", "tasks": tasks}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole model, the same with a system message, and an adapter with one."""
    folder = tmp_path_factory.mktemp("bundle")
    lora(Path(model(folder)), folder / "lora")
    tasks = {
        "chat": CHAT,
        "farm": CHAT | {"system": SYSTEM},
        "pirate": {"kind": "text-generation", "like": "chat", "system": SYSTEM},
        "german": {"kind": "text-generation", "adapter": str(folder / "lora"), "system": SYSTEM},
    }
    return wp.compile(content(folder, **tasks), folder / "a.bundle", cache=False).path


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_computes_as_the_model_with_rounded_weights(bundle: Path, tmp_path: Path, backend: str) -> None:
    opened = Bundle.open(bundle)
    assert read_report(opened).tasks == []
    assert not verify(bundle).problems
    task = opened.task("chat")
    assert (task.eval, task.dense, task.sparsity) == (None, None, 0)
    blocks = sum(opened.manifest.grid(weight).count for weight in opened.manifest.weights)
    assert all(opened.placement.kept(number) == blocks for number in range(4))
    ids = np.array([[4, 9, 12, 7, 5]])
    export_task(opened, "chat", tmp_path / "dense")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    with torch.inference_mode():
        wanted = dense(input_ids=torch.from_numpy(ids)).logits.numpy()
    with wp.load(bundle, backend=backend) as engine, engine.task("chat"):
        found = engine.model("chat").logits({"input_ids": ids, "attention_mask": np.ones_like(ids)})
    np.testing.assert_allclose(found, wanted, atol=2e-2 * np.abs(wanted).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_system_message_begins_conversations_that_bring_none(bundle: Path, backend: str) -> None:
    begun = [{"role": "system", "content": SYSTEM}, *ASKED]
    with wp.load(bundle, backend=backend) as engine:

        def said(task: str, given: Any) -> Any:
            return engine.generate(task, given, max_new_tokens=6).tokens, engine.generate(task, given).completion

        whole = said("chat", begun)
        assert whole != said("chat", ASKED)
        for task in ("farm", "pirate"):
            assert said(task, ASKED) == said(task, "red cat") == whole
            assert said(task, WITH_OWN) == said("chat", WITH_OWN)
        assert said("german", ASKED) == said("german", begun) != said("german", WITH_OWN)


def test_a_server_puts_it_there_too(bundle: Path) -> None:
    with serving(bundle, Settings()) as running, wp.load(bundle) as engine:
        for task in ("pirate", "german"):
            for given in (ASKED, WITH_OWN):
                answer = answered(running, task, given)
                assert answer == engine.generate(task, given, max_new_tokens=6).completion


def answered(running: Running, task: str, messages: Any) -> str:
    answer = running.openai.chat.completions.create(model=task, messages=messages, max_tokens=6, temperature=0)
    return answer.choices[0].message.content or ""


def test_one_is_added_and_removed_by_the_command_line(bundle: Path, tmp_path: Path, weightpager: Command) -> None:
    copy = tmp_path / "a.bundle"
    weightpager("remove", bundle, "farm", "pirate", "german", "--out", copy)
    assert "pirate added" in weightpager("add", copy, "--name", "pirate", "--system", SYSTEM).out
    assert "conversations of pirate begin with 'cow cow'" in weightpager("inspect", copy).out
    assert weightpager("add", copy, "--system", SYSTEM).code == 2
    assert "expected an adapter, a system message or both" in weightpager("add", copy, "--name", "x").err
    assert "1 to 65,536 characters" in weightpager("add", copy, "--name", "x", "--system", "").err
    with wp.load(copy) as one, wp.load(bundle) as other:
        assert one.generate("pirate", ASKED).completion == other.generate("pirate", ASKED).completion
    weightpager("remove", copy, "pirate")
    assert list(Bundle.open(copy).tasks) == ["chat"]
    assert not verify(copy).problems


def test_it_stands_beside_tasks_with_data(tmp_path: Path) -> None:
    tasks = {"chat": CHAT, "twice": tiny.completing(tmp_path, "twice", {"sun": "sun sun"}, chat=True)}
    given = content(tmp_path, **tasks) | {"sparsity": 0.5, "training": {"steps": 2, "batch": 4}}
    opened = wp.compile(given, tmp_path / "a.bundle", cache=False)
    assert [task.sparsity for task in opened.manifest.tasks] == [0, 0.5]
    assert [task.name for task in read_report(opened).tasks] == ["twice"]
    assert not verify(opened.path).problems


def test_held_out_data_of_an_adapter_is_measured(tmp_path: Path, weightpager: Command) -> None:
    path = Path(model(tmp_path))
    lora(path, tmp_path / "lora")
    plain = tiny.completing(tmp_path, "after", {"sun": "sun sun"})
    chat = tiny.completing(tmp_path, "twice", {"sun": "sun sun"}, chat=True)
    more = {"adapter": str(tmp_path / "lora"), "like": "chat", "kind": "text-generation"}
    tasks = {
        "chat": CHAT,
        "plain": more | {"eval": plain["eval"], "items": 7, "metrics": ["chrf", "exact-match"]},
        "german": more | {"eval": chat["eval"], "system": SYSTEM},
    }
    opened = wp.compile(content(tmp_path, **tasks), tmp_path / "a.bundle", cache=False)
    assert [(entry.name, entry.takes_conversations) for entry in opened.manifest.tasks] == [
        ("chat", True), ("plain", False), ("german", True)
    ]  # fmt: skip
    report = read_report(opened)
    assert report.tasks == []
    assert [(score.name, score.metric, score.items, score.dense) for score in report.added] == [
        ("plain", "chrf", 7, None), ("german", "exact-match", 40, None)
    ]  # fmt: skip
    assert "chrf" in weightpager("inspect", opened.path).out
    again = json.loads(weightpager("eval", opened.path, "--task", "plain", "--json").out)
    assert f"{report.added[0].sparse}" in json.dumps(again)
    for change, says in (
        ({"eval": "nowhere.jsonl"}, r"tasks\.plain\.eval: expected a file"),
        ({"eval": None}, r"tasks\.plain: items makes no sense without eval"),
    ):
        with pytest.raises(ConfigError, match=says):
            task_file.from_dict(content(tmp_path, chat=CHAT, plain=tasks["plain"] | change))
    (tmp_path / "bad.jsonl").write_text('{"prompt": 1, "completion": "sun"}\n')
    bad = content(tmp_path, chat=CHAT, plain=more | {"eval": str(tmp_path / "bad.jsonl")})
    with pytest.raises(CompileError, match=r"tasks\.plain\.eval|plain: "):
        wp.compile(bad, tmp_path / "b.bundle", cache=False)


def test_rows_of_its_words_come_on_demand(tmp_path: Path) -> None:
    given = content(tmp_path, chat=CHAT) | {"model": model(tmp_path, words=4096)}
    opened = wp.compile(given, tmp_path / "a.bundle", cache=False)
    (table,) = opened.manifest.row_tables
    assert table.rows == 4096
    whole = wp.compile(given | {"rows": "resident"}, tmp_path / "b.bundle", cache=False)
    ids = np.array([[4, 9, 4000, 7, 5]])
    found = []
    for path in (opened.path, whole.path):
        with wp.load(path) as engine, engine.task("chat"):
            found.append(engine.model("chat").logits({"input_ids": ids, "attention_mask": np.ones_like(ids)}))
    assert np.linalg.norm(found[0] - found[1]) < 0.05 * np.linalg.norm(found[1])  # rows are int8, whole tables bfloat16


def test_a_system_message_needs_conversations(tmp_path: Path) -> None:
    tasks: dict[str, Any] = {"chat": CHAT, "pirate": CHAT | {"system": SYSTEM}}
    given = content(tmp_path, **tasks) | {"model": model(tmp_path / "plain", template=None)}
    with pytest.raises(CompileError, match=r"tasks\.pirate\.system: .*has no chat template"):
        wp.compile(given, tmp_path / "a.bundle", cache=False)
    opened = wp.compile(given | {"tasks": {"chat": CHAT}}, tmp_path / "a.bundle", cache=False)
    with pytest.raises(ConfigError, match="system: expected a task that answers conversations"):
        add_task(opened.path, Addition("pirate", system=SYSTEM))
    plain = {"after": tiny.completing(tmp_path, "after", {"sun": "sun sun"}) | {"sparsity": 0}}
    plain["pirate"] = {"kind": "text-generation", "like": "after", "system": SYSTEM}
    with pytest.raises(CompileError, match=r"tasks\.pirate\.system: .*it reads plain prompts"):
        wp.compile(content(tmp_path, **plain), tmp_path / "b.bundle", cache=False)


@pytest.mark.parametrize(
    ("task", "settings", "says"),
    [
        ({"kind": "text-classification"}, {}, "train and eval: expected a file, found nothing"),
        ({"train": __file__}, {}, "eval: expected a file; a text-generation task may have neither"),
        ({"metrics": ["chrf"]}, {}, "metrics makes no sense for a task without train and eval"),
        ({"sparsity": 0.5}, {}, "sparsity: expected 0 without train and eval"),
        ({"system": ""}, {}, r"tasks\.chat\.system: expected text that is not empty"),
        ({"train": __file__, "eval": __file__ + "x"}, {}, r"tasks\.chat\.eval: expected a file, found none"),
        ({}, {"sparsity": 0.5}, "sparsity: expected 0, or a task with data"),
        ({}, {"keep": 0.9}, "keep: expected none beside tasks.chat, which has no data"),
        ({}, {"fit": "1MiB"}, "fit: expected none beside tasks.chat"),
        ({}, {"recover": "finetune"}, "recover: expected none beside tasks.chat, which has no data, found finetune"),
        ({}, {"units": "layer"}, "units: expected block beside tasks.chat"),
        ({}, {"compare": "all"}, "compare: expected dense beside tasks.chat"),
    ],
)
def test_what_needs_data_is_refused_at_once(
    tmp_path: Path, task: dict[str, Any], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        found = content(tmp_path, chat={"kind": "text-generation"} | task) | settings
        task_file.from_dict({key: value for key, value in found.items() if key != "dtype" or "fit" not in settings})


def test_a_base_bundle_is_told_of_add(bundle: Path, tmp_path: Path) -> None:
    given = content(tmp_path, other=CHAT)
    with pytest.raises(ConfigError, match=r"tasks\.other: expected train and eval with --base, .*weightpager add"):
        wp.compile(given, tmp_path / "b.bundle", base=bundle)

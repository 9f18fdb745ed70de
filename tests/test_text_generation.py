"""Tasks that answer prompts by texts: compiled, recovered, measured, asked in every way, grown and exported."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from msgspec import structs
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import tiny
import tiny_pairs
import weightpager as wp
from benchmarks.fuzz.sealing import rewrite_manifest
from command import Command
from json_lines import rows
from running import serving
from weightpager import evaluation
from weightpager.answers.kinds import kind_of
from weightpager.answers.work import Generate
from weightpager.backends.torch.export import export_task
from weightpager.bundle import Bundle
from weightpager.bundle.files.entry import hash_file
from weightpager.bundle.format.manifest import TaskEntry
from weightpager.bundle.held_out_places import held_out_file
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler.task_file import from_dict
from weightpager.errors import BundleFormatError, BusyError, CompileError, ConfigError
from weightpager.evaluation import measure
from weightpager.progress import silent
from weightpager.server.scheduling.job import Event, TextFailed
from weightpager.server.scheduling.settings import Settings
from weightpager.task_data.held_out import fingerprint, read_held_out

RECOVER = {"method": "finetune", "steps": 8, "batch": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clerk")


@pytest.fixture(scope="module")
def clerk(folder: Path) -> Path:
    """Two tasks on a tiny decoder; one of them has several metrics, the other one reads conversations."""
    wp.compile(tiny.clerk(folder, recover=RECOVER, compare="dense"), out=folder / "clerk.bundle")
    return folder / "clerk.bundle"


def prompts(folder: Path, task: str) -> list[str]:
    """What is asked of the task in its held-out data."""
    asked = rows(folder / f"{task}.eval.jsonl")
    return [row["prompt"] if "prompt" in row else row["messages"][0]["content"] for row in asked]


def evaluated(engine: wp.Engine, task: TaskEntry) -> dict[tuple[int, ...], str]:
    """Prompts, and what `eval` compares with the wanted answers."""
    assert task.eval is not None
    file = held_out_file(engine.bundle, task.eval)
    assert file is not None
    batches = read_held_out(task, file, engine.reader(), engine.limits.vocab_size, 32)
    found = {}
    with engine.task(task.name):
        answer = kind_of(task.kind).answering(engine.model(task.name), engine.reader(), task.generation)
        for inputs, _ in batches:
            rows = zip(inputs["input_ids"], inputs["attention_mask"], answer(inputs), strict=True)
            found |= {tuple(ids[mask == 1].tolist()): text for ids, mask, text in rows}
    return found


def test_tasks_learn_and_are_compared(clerk: Path) -> None:
    report = read_report(Bundle.open(clerk))
    after, twice = report.tasks
    assert (after.metric, after.items) == ("token-f1", 40)
    assert [other.metric for other in after.others] == ["exact-match", "chrf", "rouge-l"]
    assert after.dense is not None
    assert after.dense > 0.5
    assert (twice.metric, twice.others) == ("exact-match", [])
    assert {control.name for control in report.controls} == {"dense", "int8", "int4", "int3", "int2"}
    dense = next(control for control in report.controls if control.name == "dense")
    assert dense.scores["after"] > 0.5
    assert report.without_graph == {}


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_eval_finds_what_the_compile_found(clerk: Path, backend: str) -> None:
    with wp.Engine.from_pretrained(clerk, backend=backend) as engine:
        assert measure(engine, engine.bundle.tasks, silent) == read_report(engine.bundle).tasks


@pytest.mark.slow
@pytest.mark.parametrize("task", ["after", "twice"])
def test_eval_run_and_the_server_give_the_same_texts(
    clerk: Path, folder: Path, task: str, weightpager: Command
) -> None:
    given = prompts(folder, task)
    with wp.Engine.from_pretrained(clerk) as engine:
        entry = engine.bundle.task(task)
        measured = evaluated(engine, entry)
        answered = [prediction.label for prediction in engine.predict(task, given)]
        reader = engine.tokenizer()
    chat = entry.generation is not None and entry.generation.prompts == "chat"
    for prompt, label in zip(given, answered, strict=True):
        ids = reader(f"{prompt} snow" if chat else prompt, add_special_tokens=False)["input_ids"]
        # A conversation is as the template writes it; a text begins as the tokenizer begins one.
        assert measured[tuple(ids if chat else [reader.cls_token_id, *ids])] == label
    found = json.loads(weightpager("run", clerk, "-t", task, "--json", *given[:12]).out)["predictions"]
    assert [prediction["label"] for prediction in found] == answered[:12]
    with serving(clerk) as running:
        listed = running.openai.models.retrieve(task).to_dict()
        assert entry.generation is not None
        assert (listed["prompts"], listed["max_new_tokens"]) == ("chat" if chat else "plain", 4)
        told = running.openai.chat.completions
        for prompt, label in list(zip(given, answered, strict=True))[:12]:
            messages: Any = [{"role": "user", "content": prompt}]
            (choice,) = told.create(model=task, messages=messages).choices
            assert choice.message.content == label
        if not chat:
            found = running.openai.completions.create(model=task, prompt=given[:12], temperature=0)
            assert [choice.text for choice in found.choices] == answered[:12]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "path"), [("after", "completions"), ("twice", "chat/completions")])
@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to run the page's script")
def test_the_servers_page_asks_as_a_task_reads(clerk: Path, folder: Path, task: str, path: str) -> None:
    with serving(clerk) as running, running.http() as client:
        (stated,) = (found for found in client.get("/status").json()["tasks"] if found["name"] == task)
        function = re.search(r"^function question\(.*?^}$", client.get("/").text, re.MULTILINE | re.DOTALL)
        assert function is not None
        given = prompts(folder, task)[0]
        script = f"{function[0]}; console.log(JSON.stringify(question({json.dumps(stated)}, {json.dumps(given)}, [])))"
        node = subprocess.run(["node", "-e", script], capture_output=True, text=True, check=True, timeout=60)
        to, body = json.loads(node.stdout)
        (choice,) = client.post(to, json=body | {"stream": False}).json()["choices"]
        (wanted,) = running.service.engine.predict(task, [given])
    assert to == f"v1/{path}"
    assert (choice.get("text") or choice["message"]["content"]) == wanted.label


@pytest.mark.slow
def test_a_server_says_how_many_tokens_it_gives(clerk: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(clerk, Settings(most_new_tokens=2)) as running:
        assert running.openai.models.retrieve("twice").to_dict()["max_new_tokens"] == 2
        messages: Any = [{"role": "user", "content": "cat"}]
        (choice,) = running.openai.chat.completions.create(model="twice", messages=messages).choices
        (wanted,) = running.service.engine.predict("twice", ["cat"], max_new_tokens=2)
    assert choice.message.content == wanted.label
    assert "twice: answers end after --max-new-tokens 2; its task file allows 4" in caplog.text


def test_conversations_of_an_engine_share_a_process(clerk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    start = subprocess.Popen

    def counted(*arguments: Any, **options: Any) -> Any:
        started.append(start(*arguments, **options))
        return started[-1]

    with wp.Engine.from_pretrained(clerk) as engine:
        monkeypatch.setattr(subprocess, "Popen", counted)
        first = engine.predict("twice", ["cat", "red"])
        assert engine.predict("twice", ["cat", "red"]) == first
        (process,) = started
        assert process.poll() is None
    assert process.poll() is not None


def test_run_takes_as_many_tokens_as_the_task_states(clerk: Path, weightpager: Command) -> None:
    (found,) = json.loads(weightpager("run", clerk, "-t", "after", "--json", "cat red").out)["predictions"]
    assert 0 < len(found["label"].split()) <= 4
    (found,) = json.loads(weightpager("run", clerk, "-t", "after", "--json", "--max-new-tokens", "1", "cat").out)[
        "predictions"
    ]
    assert len(found["label"].split()) <= 1


def test_run_asks_with_a_system_message(clerk: Path, weightpager: Command) -> None:
    done = weightpager("run", clerk, "-t", "twice", "--json", "--system", "green", "red dog", "red")
    with wp.Engine.from_pretrained(clerk) as engine:
        said = [
            [{"role": "system", "content": "green"}, {"role": "user", "content": text}] for text in ("red dog", "red")
        ]
        wanted = engine.predict("twice", said)
    found = json.loads(done.out)["predictions"]
    assert [(each["text"], each["label"]) for each in found] == [(each.text, each.label) for each in wanted]


def test_a_system_message_is_for_conversations(clerk: Path, weightpager: Command) -> None:
    done = weightpager("run", clerk, "-t", "after", "--system", "green", "red dog")
    assert done.code == 2
    assert "run: expected no '--system', since after reads plain texts, found 'green'" in " ".join(done.err.split())


def test_eval_shows_every_metric(clerk: Path, weightpager: Command) -> None:
    said = weightpager("eval", clerk, "-t", "after").out
    assert all(metric in said for metric in ("token-f1", "exact-match", "chrf", "rouge-l"))


def test_an_export_ends_where_the_model_or_its_tokenizer_does(tmp_path: Path) -> None:
    content = tiny.clerk(tmp_path, recover=RECOVER)
    own = GenerationConfig(eos_token_id=[7, 8])
    own.save_pretrained(content["model"])
    bundle = wp.compile(content, out=tmp_path / "ends.bundle")
    stated = GenerationConfig.from_pretrained(export_task(bundle, "after", tmp_path / "after"))
    assert stated.eos_token_id == [3, 7, 8]  # 3 is the tokenizer's
    assert stated.max_new_tokens == 4


def test_an_export_answers_as_the_bundle_does(clerk: Path, tmp_path: Path, weightpager: Command) -> None:
    weightpager("export", clerk, "-t", "after", "--out", tmp_path / "after")
    module, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "after"),
        AutoTokenizer.from_pretrained(clerk / "model"),
    )
    given = ["cat red", "sun dog green"]
    with wp.Engine.from_pretrained(clerk) as engine:
        wanted = [found.label for found in engine.predict("after", given)]
    for prompt, label in zip(given, wanted, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"][:, :-1]  # without the end, which it adds too
        with torch.inference_mode():
            found = module.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
        assert tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True) == label.lstrip()


@pytest.mark.slow
def test_a_bundle_grows_by_such_a_task(clerk: Path, folder: Path, tmp_path: Path) -> None:
    task = tiny.completing(tmp_path, "third", {"cat": "dog", "dog": "cat"})
    added = tiny.clerk(tmp_path, model=str(folder / "llama"), tasks={"third": task}, recover=RECOVER)
    grown = wp.compile(added, out=tmp_path / "grown.bundle", base=clerk)
    assert [entry.generation is not None for entry in grown.manifest.tasks] == [True] * 3
    with wp.Engine.from_pretrained(clerk) as before, wp.Engine.from_pretrained(grown.path) as after:
        given = prompts(folder, "after")[:5]
        assert before.predict("after", given) == after.predict("after", given)
        assert after.predict("third", ["red cat"])[0].label


@pytest.mark.slow
def test_a_language_model_stands_beside_it(folder: Path, tmp_path: Path) -> None:
    third, text = tiny.completing(tmp_path, "third", {"cat": "dog"}), tiny.text(tmp_path, "text", tiny.WORDS)
    content = tiny.clerk(tmp_path, tasks={"third": third, "text": text}, training={"steps": 2}, recover="closed-form")
    found = wp.compile(content | {"accuracy_loss": 50.0}, out=tmp_path / "both.bundle")
    report = read_report(found)
    assert [task.metric for task in report.tasks] == ["exact-match", "perplexity"]
    assert "generation" not in found.manifest.tasks[1].plain()
    assert report.frontier[0].loss is not None  # by the likelihood of completions, not by texts


def test_held_out_data_of_another_form_is_refused(clerk: Path, folder: Path) -> None:
    with wp.Engine.from_pretrained(clerk) as engine:
        other = folder / "twice.eval.jsonl"
        with pytest.raises(CompileError, match="expected prompts of the form plain, as the task was compiled with"):
            read_held_out(engine.bundle.task("after"), other, engine.reader(), 16, 32)


def test_held_out_rows_are_known_by_their_file_whatever_other_columns_name(
    clerk: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.png").write_bytes(b"any")
    moved = tmp_path / "after.jsonl"
    moved.write_text("".join(json.dumps(row | {"image": "0.png"}) + "\n" for row in rows(folder / "after.eval.jsonl")))
    known = Mock(wraps=evaluation.fingerprint)
    monkeypatch.setattr(evaluation, "fingerprint", known)
    with wp.Engine.from_pretrained(clerk) as engine:
        task = engine.bundle.task("after")
        evaluation._held_out(engine.bundle, task, moved, engine.reader(), engine.limits.vocab_size)
    (call,) = known.call_args_list
    assert fingerprint(*call.args, **call.kwargs) == hash_file(moved).blake3


def test_held_out_words_that_the_model_lacks_are_refused(clerk: Path, folder: Path) -> None:
    with wp.Engine.from_pretrained(clerk) as engine:
        task, reader = engine.bundle.task("after"), engine.reader()
        with pytest.raises(BundleFormatError, match="expected ids below 8, as the model has, found larger ones"):
            read_held_out(task, folder / "after.eval.jsonl", reader, 8, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["bleu"]}, "metrics"),
        ({"metrics": ["chrf", "chrf"]}, "expected metrics that differ"),
        ({"metrics": []}, "metrics"),
        ({"head": "."}, "head"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_what_a_task_file_may_not_say(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    content = tiny.clerk(tmp_path)
    content["tasks"]["after"] |= changes
    with pytest.raises(ConfigError, match=message):
        from_dict(content)


def test_metrics_are_for_generated_texts(tmp_path: Path) -> None:
    content = tiny.writer(tmp_path)
    content["tasks"]["animals"]["metrics"] = ["chrf"]
    with pytest.raises(ConfigError, match="metrics makes no sense for language-modeling"):
        from_dict(content)


def test_a_prompt_that_the_model_cannot_read_is_refused(clerk: Path) -> None:
    with (
        wp.Engine.from_pretrained(clerk) as engine,
        pytest.raises(
            ConfigError, match="expected at most 128 tokens, as the model can read, found 128, which leaves no room"
        ),
    ):
        engine.predict("after", ["red " * 127])


def test_an_answer_ends_where_the_model_can_read_no_more(clerk: Path) -> None:
    prompt = "red " * 125
    with wp.Engine.from_pretrained(clerk) as engine:
        ours, theirs = engine.predict("after", [prompt]), engine.predict("after", [prompt], max_new_tokens=2)
        assert ours == theirs
        with pytest.raises(ConfigError, match="found 126 and 4 to be generated"):
            engine.predict("after", [prompt], max_new_tokens=4)


@pytest.fixture(scope="module")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks on a decoder whose tokenizer puts a token in front of each text, as Llama's does, and none behind it."""
    folder = tmp_path_factory.mktemp("beginner")
    inner = tiny_pairs.by_level()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    own = tiny_pairs.tokenizer(inner)
    content = tiny_pairs.tasks(folder, tiny_pairs.llama(folder / "llama", own=own, initializer_range=0.3))
    files = {split: str(folder / f"{split}.txt") for split in ("train", "eval")}
    for file in files.values():
        Path(file).write_text("\n\n".join(tiny_pairs.TEXTS * 4), encoding="utf-8")
    content["tasks"]["prose"] = {"kind": "language-modeling", **files, "max_length": 16}
    wp.compile(content | {"dtype": "float32"}, out=folder / "beginner.bundle")
    return folder / "beginner.bundle"


def completed(module: Any, ids: torch.Tensor) -> list[int]:
    with torch.inference_mode():
        found = module.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=3)
    return [int(token) for token in found[0, ids.shape[1] :]]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_completions_are_those_of_the_exported_directory_in_ordinary_use(
    beginner: Path, tmp_path: Path, backend: str
) -> None:
    prompts = ["the red fox", "under the hill", "Grün", "nobody wonders", "1234", "a runner runs, and"]
    with wp.Engine.from_pretrained(beginner, backend=backend) as engine:
        for task in ("fox", "hill", "prose"):
            folder = export_task(engine.bundle, task, tmp_path / task)
            module, reads = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
            for prompt, answer in zip(prompts, engine.predict(task, prompts, max_new_tokens=12), strict=True):
                if task == "hill":
                    said = [{"role": "user", "content": prompt}]
                    ids = reads.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt")["input_ids"]
                else:
                    ids = reads(prompt, return_tensors="pt")["input_ids"]
                assert ids[0, 0] == reads.bos_token_id
                found = completed(module, ids)
                assert (answer.tokens, answer.completion) == (len(found), reads.decode(found, skip_special_tokens=True))


def test_a_task_that_learnt_without_the_first_token_goes_on_without(
    beginner: Path, tmp_path: Path, weightpager: Command
) -> None:
    """As bundles have it that were compiled before tasks learnt with it."""
    before = shutil.copytree(beginner, tmp_path / "before.bundle")
    rewrite_manifest(before, lambda manifest: [entry.pop("add_bos_token") for entry in manifest["tasks"]])
    prompt = "the red fox"
    with wp.Engine.from_pretrained(before) as engine:
        ids = engine.tokenizer()(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        (answer,) = engine.predict("prose", [prompt], max_new_tokens=12)
    done = weightpager("export", before, "-t", "prose", "--out", tmp_path / "prose")
    assert "call the tokenizer with add_special_tokens=False" in " ".join(done.err.split())
    found = completed(AutoModelForCausalLM.from_pretrained(tmp_path / "prose"), ids)
    assert answer.completion == AutoTokenizer.from_pretrained(before / "model").decode(found, skip_special_tokens=True)
    assert "begin with what the tokenizer" not in weightpager("inspect", before).out
    assert "prompts of fox, hill, prose begin with what the tokenizer" in weightpager("inspect", beginner).out


def test_the_server_counts_the_first_token(beginner: Path) -> None:
    with serving(beginner) as running:
        alone = len(running.service.engine.tokenizer()("the red fox", add_special_tokens=False)["input_ids"])
        for task in ("fox", "prose"):
            found = running.openai.completions.create(model=task, prompt="the red fox", max_tokens=2)
            assert found.usage is not None
            assert found.usage.prompt_tokens == alone + 1


@pytest.mark.parametrize("begins", [True, False])
def test_a_prompt_that_was_read_in_another_form_is_not_answered(clerk: Path, begins: bool) -> None:
    with serving(clerk) as running:
        service, told = running.service, SimpleQueue[Event]()
        task = service.task("after")
        assert task.generation is not None
        chat = structs.replace(task.generation, prompts="chat")
        before = structs.replace(task, add_bos_token=False) if begins else structs.replace(task, generation=chat)
        service.admit(before, 1)
        service.submit(before, [Generate((4, 5), 1)], told.put)
        event = told.get(timeout=60)
    assert isinstance(event, TextFailed)
    assert isinstance(event.error, BusyError)
    assert "compiled anew" in str(event.error)

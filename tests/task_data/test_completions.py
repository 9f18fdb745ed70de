"""Files of prompts and completions: every form, every rule, and what is said about anything else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import tiny
import tiny_pairs
from weightpager.answers.generation import decoder_after
from weightpager.answers.kinds import IGNORED
from weightpager.compiler import data
from weightpager.compiler.data import TaskData, reader_of
from weightpager.compiler.task_file.sections import TaskSpec
from weightpager.errors import CompileError
from weightpager.readers.tokenizer import Tokenizer
from weightpager.task_data.completions import CompletionExample, CompletionReader

BEGIN, END = 2, 3
RED, GREEN, CAT, SNOW = 4, 5, 7, 12
USER = {"role": "user", "content": "red"}
ANSWER = {"role": "assistant", "content": "cat"}


def tokenizer(template: str | None = tiny.TEMPLATE) -> PreTrainedTokenizerFast:
    found = tiny.tokenizer()
    found.eos_token, found.chat_template = "[SEP]", template
    return found


def reader(template: str | None = tiny.TEMPLATE) -> Tokenizer:
    return tiny.reader(tokenizer(template))


def read(
    path: Path, rows: list[Any], length: int = 8, template: str | None = tiny.TEMPLATE
) -> tuple[CompletionExample, ...]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return CompletionReader("prompt", "completion", reader(template), length).read(path, "data")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


def test_completions_alone_are_learnt(path: Path) -> None:
    (found,) = read(path, [{"prompt": "red green", "completion": "cat"}])
    assert list(found.tokens) == [BEGIN, RED, GREEN, CAT, END]
    assert found.label == [IGNORED] * 3 + [CAT, END]
    assert (found.prompt, found.answer, found.chat) == ((BEGIN, RED, GREEN), "cat", False)


def test_a_task_that_learnt_without_the_first_token_is_measured_without(path: Path) -> None:
    path.write_text(json.dumps({"prompt": "red", "completion": "cat"}))
    (found,) = CompletionReader("prompt", "completion", reader(), 8, bos=False).read(path, "data")
    assert list(found.tokens) == [RED, CAT, END]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": [USER], "completion": "cat"},
        {"messages": [USER, {**ANSWER, "weight": 1}], "id": 7},
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "r"}, {"type": "text", "text": "ed"}]},
                ANSWER,
            ]
        },
        {"messages": [USER, ANSWER], "prompt": None},
    ],
)
def test_conversations_are_read_as_their_template_writes_them(path: Path, row: dict[str, Any]) -> None:
    (found,) = read(path, [row])
    assert (found.prompt, found.answer, found.chat) == ((RED, SNOW), "cat", True)
    assert list(found.tokens) == [RED, SNOW, CAT, END]


def test_the_last_answer_of_several_is_learnt(path: Path) -> None:
    (found,) = read(path, [{"messages": [USER, ANSWER, {"role": "user", "content": "green"}, ANSWER]}])
    assert found.prompt == (RED, CAT, GREEN, SNOW)
    assert found.label == [IGNORED] * 4 + [CAT, END]


def test_without_a_template_messages_are_lines(path: Path) -> None:
    (found,) = read(path, [{"messages": [{"role": "system", "content": "green"}, USER, ANSWER]}], template=None)
    assert found.prompt == (BEGIN, GREEN, RED)


def test_without_a_template_an_answer_begins_a_line(path: Path) -> None:
    own = tiny_pairs.tokenizer(tiny_pairs.by_level())
    own.chat_template = None
    path.write_text(json.dumps({"messages": [{**USER, "content": "a2"}, {**ANSWER, "content": "b2"}]}))
    (found,) = CompletionReader("prompt", "completion", reader_of(own), 16).read(path, "data")
    assert own.decode(found.tokens) == "<s>a2\nb2</s>"


def test_a_missing_template_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, expected = [{"messages": [USER, ANSWER]}], "the model has no chat template: the messages' texts are read"
    load(tmp_path, rows, rows)
    load(tmp_path, [{"prompt": "red", "completion": " cat"}], [{"prompt": "red", "completion": " cat"}], template=None)
    assert expected not in caplog.text
    load(tmp_path, rows, rows, template=None)
    assert caplog.text.count(expected) == 1


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
def test_other_files_hold_the_same(tmp_path: Path, suffix: str) -> None:
    path, frame = tmp_path / f"data.{suffix}", pandas.DataFrame([{"prompt": "red", "completion": "cat"}])
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if suffix == "csv" else "\t")
    (found,) = CompletionReader("prompt", "completion", reader(), 8).read(path, "data")
    assert list(found.tokens) == [BEGIN, RED, CAT, END]


def test_conversations_come_from_parquet_too(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pandas.DataFrame([{"messages": [USER, ANSWER]}]).to_parquet(path)
    (found,) = CompletionReader("prompt", "completion", reader(), 8).read(path, "data")
    assert found.prompt == (RED, SNOW)


def test_a_completion_is_cut_and_its_end_not_learnt(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "red " * 5, "completion": "cat cat cat"}, {"prompt": "red", "completion": "cat"}]
    found, _ = read(path, rows)
    assert list(found.tokens) == [BEGIN] + [RED] * 5 + [CAT] * 2
    assert found.answer == "cat cat cat"
    assert "1 of 2 completions are cut at max_length 8" in caplog.text


REFUSED = [
    ({"prompt": "red " * 8, "completion": "cat"}, "row 1: expected a prompt of fewer tokens than max_length 8"),
    ({"prompt": "red", "completion": " "}, "row 1: expected a completion, found an empty text"),
    ({"prompt": "", "completion": "cat"}, "row 1: expected a prompt, found an empty text"),
    ({"prompt": " \n", "completion": "cat"}, "row 1: expected a prompt, found an empty text"),
    (
        {"prompt": "red", "completion": "cat", "messages": [USER, ANSWER]},
        "row 1: expected either 'prompt' and 'completion' or 'messages', found both; leave one of them out",
    ),
    ({"prompt": "red", "messages": [USER, ANSWER]}, "row 1: expected either 'prompt' and 'completion' or 'messages'"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
        "expected messages with a role and a content that is text",
    ),
    ({"prompt": "red", "completion": 3}, "row 1: expected a completion that is text or a list of messages, found 3"),
    ({"prompt": 3, "completion": "cat"}, "row 1: expected a prompt that is text or a list of messages, found 3"),
    ({"prompt": "red"}, "expected columns 'prompt' and 'completion', or 'messages', found prompt"),
    ({"text": "red"}, "expected columns 'prompt' and 'completion', or 'messages', found text"),
    ({"messages": "red"}, "row 1: expected a list of messages, found 'red'"),
    ({"messages": []}, "row 1: expected a list of messages, found []"),
    ({"messages": [USER]}, "row 1: expected messages of which the last is the assistant's answer, found user"),
    ({"messages": [ANSWER]}, "row 1: expected messages of which the last is the assistant's answer, found assistant"),
    ({"messages": [USER, ANSWER, USER]}, "last is the assistant's answer, found user, assistant, user"),
    ({"messages": [{"role": "tool", "content": "red"}, ANSWER]}, "row 1: expected a role of system, developer, user"),
    ({"messages": [{"content": "red"}, ANSWER]}, "row 1: expected a role of system, developer, user, assistant"),
    (
        {"messages": [{"role": "user", "content": 3}, ANSWER]},
        "expected messages with a role and a content that is text",
    ),
    ({"messages": [USER, ANSWER], "tools": [{"type": "function"}]}, "row 1: expected a conversation without tools"),
    ({"prompt": [USER], "completion": "cat", "functions": [{}]}, "expected a conversation without tools, found 'func"),
    ({"messages": [USER, ANSWER | {"weight": 0}]}, "row 1: expected an answer to learn from, found one of weight 0"),
    ({"messages": [USER | {"tool_calls": [{}]}, ANSWER]}, "row 1: expected messages that call no tools, found 'tool"),
    ({"messages": [3, ANSWER]}, None),  # no file of one type of columns
    ({"prompt": "red", "completion": [USER]}, "row 1: expected a completion of one message of the assistant"),
    ({"prompt": "red", "completion": [ANSWER, ANSWER]}, "row 1: expected a completion of one message of the assistant"),
]


@pytest.mark.parametrize(("row", "message"), REFUSED)
def test_other_rows_are_refused(path: Path, row: dict[str, Any], message: str | None) -> None:
    with pytest.raises(CompileError) as refused:
        read(path, [row])
    assert message is None or message in str(refused.value)


def test_tools_that_are_none_and_weights_of_other_answers_are_let_through(path: Path) -> None:
    rows = [{"messages": [USER, ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}], "tools": None}]
    assert read(path, rows)[0].answer == "cat"
    assert read(path, [{"prompt": "red", "completion": "cat", "tools": "a column of one's own"}])[0].answer == "cat"


def blank_first(*, prepends: bool) -> Tokenizer:
    """A tokenizer that puts a blank before each text, as those of SentencePiece do."""
    letters = dict.fromkeys(["[UNK]", "[SEP]", "<0x0A>", *"▁abc"])
    own = tokenizers.Tokenizer(models.BPE({token: n for n, token in enumerate(letters)}, [], byte_fallback=True))
    if prepends:
        own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        own.decoder = decoders.Sequence(steps)
    else:
        own.pre_tokenizer, own.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tiny.reader(PreTrainedTokenizerFast(tokenizer_object=own, eos_token="[SEP]", unk_token="[UNK]"))


@pytest.mark.parametrize(
    ("prepends", "answer"),
    [*((prepends, answer) for prepends in (True, False) for answer in ("c", " c", "  c", "b c")), (True, "\n c")],
)
def test_an_answer_is_learnt_without_a_blank_that_the_row_lacks(path: Path, prepends: bool, answer: str) -> None:
    path.write_text(json.dumps({"prompt": "ab", "completion": answer}))
    own = blank_first(prepends=prepends)
    (found,) = CompletionReader("prompt", "completion", own, 32).read(path, "data")
    learnt = [token for token in found.label if token not in (IGNORED, own.end_id)]
    assert decoder_after(own, found.prompt)(learnt) == answer


def test_a_row_among_others_is_named(path: Path) -> None:
    with pytest.raises(CompileError, match=r"data: row 2: expected a completion"):
        read(path, [{"prompt": "red", "completion": "cat"}, {"prompt": "red"}])


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("in_one", [False, True])
def test_a_row_of_another_form_than_the_first_is_named(tmp_path: Path, suffix: str, in_one: bool) -> None:
    pair, messages = {"prompt": "red", "completion": "cat"}, {"messages": [USER, ANSWER]}
    first, other = (messages, pair) if in_one else (pair, messages)
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        pandas.DataFrame([first, first, other]).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in (first, first, other)))
    has, found = ("'messages'", "'prompt' and 'completion'") if in_one else ("'prompt' and 'completion'", "'messages'")
    expected = f"row 3: expected {has}, as the first row has, found {found}; keep rows of one form in a file"
    with pytest.raises(CompileError, match=expected):
        CompletionReader("prompt", "completion", reader(), 8).read(path, "data")


def test_a_column_of_messages_may_be_the_prompt(path: Path) -> None:
    path.write_text(json.dumps({"messages": [USER], "completion": "cat"}))
    (found,) = CompletionReader("messages", "completion", reader(), 8).read(path, "data")
    assert (found.prompt, found.answer) == ((RED, SNOW), "cat")


def test_a_conversation_without_a_word_is_refused(path: Path) -> None:
    blank = {"messages": [{"role": "user", "content": " "}, ANSWER]}
    with pytest.raises(CompileError, match="row 1: expected a prompt, found an empty text"):
        read(path, [blank], template=None)


@pytest.mark.parametrize(
    ("said", "most", "limit", "remedy"),
    [
        (4, 4, "the 4 that the tokenizer says the model reads (model_max_length)", "leave the row out"),
        (8, 8, "the 8 that the tokenizer says the model reads (model_max_length)", "leave the row out"),
        (9, 8, "max_length 8", "raise max_length"),
    ],
)
def test_a_prompt_leaves_room_for_an_answer(path: Path, said: int, most: int, limit: str, remedy: str) -> None:
    own = reader()
    own.longest = said
    rows = CompletionReader("prompt", "completion", own, 8)
    path.write_text(json.dumps({"prompt": "red " * (most - 2), "completion": "cat"}))
    assert rows.read(path, "data")
    path.write_text(json.dumps({"prompt": "red " * (most - 1), "completion": "cat"}))
    expected = f"row 1: expected a prompt of fewer tokens than {limit}, so that a completion has room, found {most}; "
    with pytest.raises(CompileError, match=re.escape(expected + remedy)):
        rows.read(path, "data")


def test_a_template_that_refuses_a_conversation_is_an_error(path: Path) -> None:
    refusing = "{{ raise_exception('users first') }}"
    with pytest.raises(CompileError, match=r"row 1: .*template takes: users first"):
        read(path, [{"messages": [USER, ANSWER]}], template=refusing)


def test_a_template_that_takes_too_much_is_an_error(path: Path) -> None:
    expected = (
        "data: row 1: the model's chat template took more than a text of 1048576 characters for these messages and was "
        "stopped; write the prompt as a text, or mend chat_template"
    )
    with pytest.raises(CompileError, match=f"^{expected}$"):
        read(path, [{"messages": [USER, ANSWER]}], template="{{ 'a' * 2 ** 21 }}")


def test_the_default_one_of_several_templates_counts(path: Path) -> None:
    path.write_text(json.dumps({"messages": [USER, ANSWER]}))
    own = tokenizer()
    own.chat_template = {"tool_use": "green", "default": tiny.TEMPLATE}
    (found,) = CompletionReader("prompt", "completion", reader_of(own), 8).read(path, "data")
    assert found.prompt == (RED, SNOW)
    own.chat_template = {"tool_use": "green"}
    with pytest.raises(CompileError, match="row 1: .*several templates, no default one"):
        CompletionReader("prompt", "completion", reader_of(own), 8).read(path, "data")


@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_in_texts_are_read_as_on_a_device(split: bool) -> None:
    inner = tokenizer().backend_tokenizer
    named = {"unk_token": "[UNK]", "eos_token": "[SEP]"}
    own = PreTrainedTokenizerFast(tokenizer_object=inner, split_special_tokens=split, **named)
    found = reader_of(own).encode("red [SEP]", special=False).ids
    assert (found == (RED, END)) is not split
    assert found == tiny.reader(own).encode("red [SEP]", special=False).ids
    assert list(found) == own("red [SEP]", add_special_tokens=False)["input_ids"]


def test_a_tokenizer_must_name_an_end(path: Path) -> None:
    read(path, [{"prompt": "red", "completion": "cat"}])
    with pytest.raises(CompileError, match="names a token which ends a text"):
        CompletionReader("prompt", "completion", tiny.reader(), 8).read(path, "data")


def load(
    folder: Path, train: list[Any], held_out: list[Any], template: str | None = tiny.TEMPLATE, **settings: Any
) -> TaskData:
    files = {}
    for split, rows in {"train": train, "eval": held_out}.items():
        files[split] = folder / f"{split}.jsonl"
        files[split].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return data.load("job", TaskSpec(kind="text-generation", **files, **settings), tokenizer(template), (), 8)


def test_prompts_that_training_has_seen_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = [{"prompt": word, "completion": "cat"} for word in tiny.WORDS]
    load(tmp_path, train, [{"prompt": "red", "completion": "dog"}, {"prompt": "red red", "completion": "cat"}])
    assert "1 of 2 examples are training examples too" in caplog.text


def test_splits_of_two_forms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"tasks.job: .*one form.*found plain in train, chat in eval"):
        load(tmp_path, [{"prompt": "red", "completion": "cat"}], [{"messages": [USER, ANSWER]}])


def test_answers_that_will_be_cut_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "red", "completion": "cat cat"}, {"prompt": "green", "completion": "cat"}]
    load(tmp_path, rows, rows, max_new_tokens=1)
    assert "1 of 2 completions have more than max_new_tokens 1" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "completion", "warned"),
    [("red", "cat", True), ("red", "1", True), ("red", " cat", False), ("red ", "cat", False), ("red:", "cat", False)],
)
def test_completions_that_go_on_with_a_word_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, prompt: str, completion: str, warned: bool
) -> None:
    rows = [{"prompt": f"green {prompt}", "completion": completion}, {"prompt": prompt, "completion": completion}]
    load(tmp_path, [*rows, {"prompt": "red", "completion": " cat"}], rows)
    assert ("2 of 3 completions go on with the last word of their prompts" in caplog.text) is warned


def test_answers_after_messages_go_on_with_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(tmp_path, [{"messages": [USER, ANSWER]}], [{"messages": [USER, ANSWER]}])
    assert "last word" not in caplog.text


def test_held_out_batches_are_prompts_and_what_is_wanted(tmp_path: Path) -> None:
    rows = [{"prompt": "red green red", "completion": "cat"}, {"prompt": "red", "completion": "dog cow"}]
    (batch,) = load(tmp_path, rows, rows).held_out()
    assert batch.inputs["input_ids"].tolist() == [[0, 0, BEGIN, RED], [BEGIN, RED, GREEN, RED]]
    assert batch.inputs["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch.wanted == ("dog cow", "cat")


def test_batches_hold_a_bounded_number_of_tokens(tmp_path: Path) -> None:
    rows = [{"prompt": "red " * (1 + number % 6), "completion": "cat"} for number in range(600)]
    found = load(tmp_path, rows, rows[:1])
    batches = found.batches(found.train, 500)
    assert sum(batch.items for batch in batches) == 600
    assert all(batch.labels.numel() <= 2048 for batch in batches)
    assert max(batch.items for batch in batches) > 256

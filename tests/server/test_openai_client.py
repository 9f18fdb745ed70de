"""The official client, unchanged, against a real server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from blake3 import blake3

import weightpager as wp
from running import Running, serving
from weightpager.server.inputs.vocabulary import Vocabulary

MESSAGES = [{"role": "user", "content": "one two"}]


def continued(bundle: Path, text: str, tokens: int, task: str = "numbers") -> str:
    with wp.Engine.from_pretrained(bundle) as engine:
        return engine.predict(task, [text], max_new_tokens=tokens)[0].label


def test_models_are_the_tasks(assistant: Running) -> None:
    models = assistant.openai.models.list().data
    assert {model.id for model in models} == {"animal", "weather", "number", "colour"}
    found = assistant.openai.models.retrieve("weather").to_dict()
    assert (found["id"], found["prompts"], found["max_new_tokens"]) == ("weather", None, None)


def test_a_completion_is_what_the_engine_says(writer: Running, writer_bundle: Path) -> None:
    client = writer.openai
    found = client.completions.create(model="numbers", prompt="one two", max_tokens=6, temperature=0)
    assert found.choices[0].text == continued(writer_bundle, "one two", 6)
    assert found.usage is not None
    assert found.usage.prompt_tokens == 3  # with the one that begins a text
    assert found.usage.completion_tokens <= 6
    assert found.choices[0].finish_reason in {"stop", "length"}


def test_several_prompts_are_several_choices(writer: Running, writer_bundle: Path) -> None:
    prompts = ["one two", "two", "cat cow dog one"]
    found = writer.openai.completions.create(model="numbers", prompt=prompts, max_tokens=5, temperature=0)
    assert [choice.text for choice in found.choices] == [continued(writer_bundle, text, 5) for text in prompts]


def test_tokens_can_be_sent(writer: Running) -> None:
    client = writer.openai
    whole = client.completions.create(model="numbers", prompt="one two", max_tokens=5, temperature=0)
    tokens = client.completions.create(model="numbers", prompt=[2, 13, 14], max_tokens=5, temperature=0)
    assert tokens.choices[0].text == whole.choices[0].text
    with pytest.raises(openai.BadRequestError, match="token ids from 0 to 15"):
        client.completions.create(model="numbers", prompt=[16], max_tokens=5)


def test_a_stream_gives_the_same_text(writer: Running) -> None:
    client = writer.openai
    whole = client.completions.create(model="numbers", prompt="one two", max_tokens=8, temperature=0)
    parts = list(client.completions.create(model="numbers", prompt="one two", max_tokens=8, temperature=0, stream=True))
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_chat(writer: Running, writer_bundle: Path) -> None:
    found = writer.openai.chat.completions.create(model="numbers", messages=MESSAGES, max_tokens=6, temperature=0)
    assert found.choices[0].message.content == continued(writer_bundle, "one two", 6)
    assert found.choices[0].message.role == "assistant"


def test_a_chat_stream_ends_with_its_usage_if_asked(writer: Running, writer_bundle: Path) -> None:
    chunks = list(
        writer.openai.chat.completions.create(
            model="numbers",
            messages=MESSAGES,
            max_tokens=6,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == continued(writer_bundle, "one two", 6)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens <= 6


def test_a_stop_text_is_cut_off(writer: Running) -> None:
    client = writer.openai
    whole = client.completions.create(model="numbers", prompt="one two", max_tokens=8, temperature=0).choices[0].text
    word = whole.split()[-1]
    cut = client.completions.create(model="numbers", prompt="one two", max_tokens=8, temperature=0, stop=[word])
    assert cut.choices[0].text == whole[: whole.index(word)]
    assert cut.choices[0].finish_reason == "stop"


def test_a_seed_draws_the_same_again(writer: Running) -> None:
    client = writer.openai
    texts = [
        client.completions.create(model="animals", prompt="cat", max_tokens=12, temperature=1.5, seed=seed)
        .choices[0]
        .text
        for seed in (1, 1, 2, 3, 4)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_without_a_temperature_language_models_draw(writer: Running) -> None:
    asked = {"model": "animals", "prompt": "cat", "max_tokens": 12}
    texts = [
        writer.openai.completions.create(**asked, seed=seed, **stated).choices[0].text  # type: ignore[call-overload]
        for seed in range(4)
        for stated in ({}, {"temperature": 1})
    ]
    assert texts[::2] == texts[1::2]
    assert len(set(texts)) > 1


@pytest.fixture(scope="module")
def answering(writer_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The writer, of whose tasks "animals" is one of text generation."""
    bundle = Path(shutil.copytree(writer_bundle, tmp_path_factory.mktemp("answering") / "writer.bundle"))
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    (task,) = (task for task in manifest["tasks"] if task["name"] == "animals")
    generation = {"prompts": "plain", "max_new_tokens": 12, "metrics": ["exact-match"]}
    task |= {"kind": "text-generation", "generation": generation}
    sealed = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(sealed)
    (bundle / "manifest.blake3").write_text(blake3(sealed).hexdigest() + "\n")
    with serving(bundle, backend="torch") as running:
        yield running


def test_without_a_temperature_text_generation_answers_as_eval(answering: Running) -> None:
    prompts = ["cat", "dog cat", "cow", "one two"]
    wanted = [found.label for found in answering.service.engine.predict("animals", prompts)]

    def asked(**stated: Any) -> list[str]:
        found = answering.openai.completions.create(model="animals", prompt=prompts, **stated)
        return [choice.text for choice in found.choices]

    for stated in ({}, {"seed": 3}, {"top_p": 1}, {"n": 1}, {"extra_body": {"temperature": None, "best_of": 1}}):
        assert asked(**stated) == wanted
    told = answering.openai.chat.completions
    said: Any = [{"role": "user", "content": prompts[0]}]
    assert told.create(model="animals", messages=said).choices[0].message.content == wanted[0]
    parts = [part.choices[0].delta.content or "" for part in told.create(model="animals", messages=said, stream=True)]
    assert "".join(parts) == wanted[0]


def test_text_generation_draws_where_a_request_asks_for_it(answering: Running) -> None:
    prompts = ["cat"] * 8

    def asked(**stated: Any) -> set[str]:
        found = answering.openai.completions.create(model="animals", prompt=prompts, **stated)
        return {choice.text for choice in found.choices}

    (greedy,) = asked()
    for stated in ({"temperature": 1}, {"temperature": 1, "top_p": 0.99}, {"top_p": 0.99}):
        assert asked(**stated) - {greedy}
    assert asked(temperature=0, top_p=0.99) == {greedy}


def test_a_temperature_near_zero_is_greedy(writer: Running) -> None:
    texts = {
        writer.openai.completions.create(model="animals", prompt="cat", max_tokens=6, temperature=hot).choices[0].text
        for hot in (0, 5e-324, 1e-9)
    }
    assert len(texts) == 1


def test_embeddings_are_the_mean_of_the_last_hidden_state(assistant: Running, assistant_bundle: Path) -> None:
    texts = ["red cat rain", "sun"]
    found = assistant.openai.embeddings.create(model="weather", input=texts)
    plain = assistant.openai.embeddings.create(model="weather", input=texts, encoding_format="float")
    with (
        wp.Engine.from_pretrained(assistant_bundle) as engine,
        engine.task("weather") as module,
        torch.inference_mode(),
    ):
        for number, text in enumerate(texts):
            hidden = module.base_model(**engine.tokenizer()(text, return_tensors="pt")).last_hidden_state  # type: ignore[operator, union-attr]
            for vectors in (found, plain):
                torch.testing.assert_close(torch.tensor(vectors.data[number].embedding), hidden[0].mean(0).float())


def test_an_unknown_task_is_a_model_that_is_not_found(assistant: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="Did you mean 'weather'") as caught:
        assistant.openai.embeddings.create(model="wether", input="sun")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        assistant.openai.models.retrieve("wether")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "numbers", "n": 17}, "n:"),
        ({"model": "numbers", "frequency_penalty": 2.5}, "frequency_penalty"),
        ({"model": "numbers", "logprobs": 6}, "logprobs"),
        ({"model": "numbers", "temperature": -1}, "temperature"),
        ({"model": "numbers", "prompt": []}, "prompt"),
        ({"model": "numbers", "prompt": ""}, "at least one token"),
        ({"model": "numbers", "max_tokens": 4000}, "at most 128 tokens"),
        ({"model": "numbers", "prompt": [True]}, "prompt"),
        ({"model": "numbers", "logit_bias": {"7": -101}}, "logit_bias"),
        ({"model": "numbers", "logit_bias": {"16": 1}}, "ids of tokens below 16, found 16"),
        ({"model": "numbers", "extra_body": {"response_format": {"type": "json_object"}}}, "a token for each byte"),
        ({"model": "numbers", "extra_body": {"response_format": {"type": "xml"}}}, "whose type is 'text'"),
    ],
)
def test_what_cannot_be_served_is_refused(writer: Running, fields: dict[str, object], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        writer.openai.completions.create(**{"prompt": "one", **fields})  # type: ignore[call-overload]


def test_text_is_generated_by_tasks_that_do(assistant: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="'weather' is a text-classification task"):
        assistant.openai.chat.completions.create(model="weather", messages=MESSAGES)


def test_an_empty_text_is_not_too_long(writer: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """To tokenizers that add nothing it has no tokens."""
    monkeypatch.setattr(Vocabulary, "whole", lambda *_: ())
    with pytest.raises(openai.BadRequestError, match="found an empty text") as refused:
        writer.openai.embeddings.create(model="numbers", input="")
    assert refused.value.code is None


def test_null_is_as_good_as_nothing(writer: Running) -> None:
    asked = {"model": "numbers", "prompt": "one two", "max_tokens": 4, "seed": 3}
    plain = writer.openai.completions.create(**asked)  # type: ignore[call-overload]
    nulls = {"temperature": None, "top_p": None, "stream": None, "logit_bias": {}, "response_format": None}
    found = writer.openai.completions.create(**asked, extra_body=nulls)  # type: ignore[call-overload]
    assert found.choices == plain.choices


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"input": []}, "input: expected at least one text or token, found none", "input"),
        ({"input": ["a"] * 129}, "input: expected at most 128 texts, found 129", "input"),
        ({"input": 3}, "input: expected a text, texts, token ids, or lists of them, found int", "input"),
        ({"input": ["a", [1]]}, None, "input.1"),
        ({"input": [-1]}, None, "input.0"),
    ],
)
def test_a_refusal_names_the_field_in_plain_words(
    assistant: Running, fields: dict[str, object], message: str | None, param: str
) -> None:
    with assistant.http() as client:
        error = client.post("/v1/embeddings", json={"model": "weather", **fields}).json()["error"]
    assert error["param"] == param
    assert message in (None, error["message"])
    assert not any(sign in error["message"] for sign in "[<(")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "input: expected at least one text, found none"),
        (["a"] * 129, "input: expected at most 128 texts, found 129"),
        (None, "input: expected a text or texts, found NoneType"),
    ],
)
def test_a_refused_classification_says_what_is_wrong_with_the_list(
    assistant: Running, given: list[str] | None, message: str
) -> None:
    with assistant.http() as client:
        answer = client.post("/v1/classifications", json={"model": "weather", "input": given})
    assert answer.json()["error"]["message"] == message


def test_what_is_no_json_is_said(assistant: Running) -> None:
    with assistant.http() as client:
        headers = {"Content-Type": "application/json"}
        error = client.post("/v1/embeddings", content=b'{"model": ,', headers=headers).json()["error"]
    assert error["message"].startswith("body: expected JSON")
    assert error["param"] is None


def test_what_is_not_utf_8_is_said(assistant: Running) -> None:
    with assistant.http() as client:
        headers = {"Content-Type": "application/json"}
        body = '{"model": "weather", "input": "café"}'.encode("latin-1")
        error = client.post("/v1/classifications", content=body, headers=headers).json()["error"]
    assert error["message"] == "body: expected JSON in UTF-8, found the byte 0xe9 at 34"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\xff\xfe{", "body: expected JSON in UTF-8, found the byte 0xff at 0"),
        (b"[" * 500_000, "body: expected JSON, found values inside too many others"),
        (b'{"model": "weather", "input": "\\ud800"}', "input: expected Unicode text, found half of a surrogate pair"),
        (b"", "body: expected a value, found nothing"),
    ],
)
def test_what_the_json_module_stumbles_over_is_said(assistant: Running, body: bytes, message: str) -> None:
    with assistant.http() as client:
        headers = {"Content-Type": "application/json"}
        error = client.post("/v1/classifications", content=body, headers=headers).json()["error"]
    assert error["message"] == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": list("abcde")}, "stop: expected at most 4 items, found 5"),
        ({"stop": "a" * 257}, "stop: expected at most 256 characters, found 257"),
        ({"stop": ""}, "stop: expected at least one character, found none"),
        ({"prompt": [[1], []]}, "prompt.1: expected at least one item, found none"),
        ({"presence_penalty": -3}, "presence_penalty: expected a number greater than or equal to -2, found -3"),
        ({"stream_options": 5}, "stream_options: expected an object, found 5"),
        ({"stream": "perhaps"}, "stream: expected true or false, found 'perhaps'"),
        ({"seed": 1.5}, "seed: expected a valid integer, found 1.5"),
        ({"prompt": [-1]}, "prompt.0: expected a number greater than or equal to 0, found -1"),
        ({"prompt": [1, "a"]}, "prompt.1: expected a valid integer, found 'a'"),
        ({"prompt": ["a", 1]}, "prompt.1: expected a valid string, found 1"),
        ({"prompt": [[1], 2]}, "prompt.1: expected a valid list, found 2"),
        ({"prompt": [[1], ["a"]]}, "prompt.1.0: expected a valid integer, found 'a'"),
        ({"prompt": [1, 99]}, "expected token ids from 0 to 15, found 99 at 1"),
        ({"model": None}, "model: expected a valid string, found nothing"),
        ({"suffix": "a"}, "suffix: not supported; leave it out"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name: expected a value, found nothing",
        ),
    ],
)
def test_of_a_field_with_several_forms_the_one_that_was_meant_is_named(
    writer: Running, fields: dict[str, object], message: str
) -> None:
    with writer.http() as client:
        answer = client.post("/v1/completions", json={"model": "numbers", "prompt": "one"} | fields)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([1], "body: expected an object, found list"),
        ({"model": "numbers", "messages": []}, "messages: expected at least one item, found none"),
        ({"model": "numbers", "messages": ["a"]}, "messages.0: expected an object, found 'a'"),
    ],
)
def test_a_conversation_that_is_none_is_explained(writer: Running, body: object, message: str) -> None:
    with writer.http() as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


@pytest.mark.parametrize(
    ("method", "path", "status", "advice"),
    [
        ("POST", "/embeddings", 404, "did you mean POST /v1/embeddings?"),
        ("POST", "/v1/classification", 404, "did you mean POST /v1/classifications?"),
        ("GET", "/v1/classifications", 405, "did you mean POST /v1/classifications?"),
        ("POST", "/v1/chat/completion/", 404, "did you mean POST /v1/chat/completions?"),
        ("GET", "/statuss", 404, "did you mean GET /status?"),
        ("POST", "/v2/elsewhere", 404, "the base URL of OpenAI's clients ends in /v1"),
    ],
)
def test_a_route_that_is_none_is_named(assistant: Running, method: str, path: str, status: int, advice: str) -> None:
    with assistant.http() as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    message = answer.json()["error"]["message"]
    assert message.endswith(f"found {method} {path}; {advice}")

"""Answers by a schema, from a server with a model of random weights, which would say anything else."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jsonschema
import numpy as np
import openai
import pytest
from pydantic import BaseModel

import tiny_pairs
import weightpager as wp
from running import Running, serving
from weightpager.answers import grammar
from weightpager.machine import packages
from weightpager.server.scheduling.settings import Policy, Settings

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blüe"]},
        "hills": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 20}, "maxItems": 3},
        "name": {"type": "string", "maxLength": 6},
    },
    "required": ["colour", "hills", "name"],
    "additionalProperties": False,
}
SAID: Any = [{"role": "user", "content": "the red fox"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    model = tiny_pairs.llama(folder / "llama", initializer_range=0.3, max_position_embeddings=512)
    return wp.compile(tiny_pairs.tasks(folder, model), folder / "a.bundle", cache=False).path


@pytest.fixture(scope="module", params=["native", "torch"])
def running(path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving(path, backend=request.param) as running:
        yield running


def form(schema: Mapping[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def asked(running: Running, schema: Mapping[str, Any] = SCHEMA, **more: Any) -> Any:
    given = {"model": "hill", "messages": SAID, "max_tokens": 300, "response_format": form(schema), **more}
    return running.openai.chat.completions.create(**given)


def check(choices: Any, schema: Mapping[str, Any] = SCHEMA) -> int:
    """Every answer that has ended is valid; how many are."""
    ended = [choice.message.content for choice in choices if choice.finish_reason == "stop"]
    for text in ended:
        jsonschema.validate(json.loads(text), schema)
    return len(ended)


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0},
        {"temperature": 1, "n": 16, "seed": 3},
        {"temperature": 2, "n": 16},
        {"temperature": 1, "n": 4, "top_p": 0.5, "frequency_penalty": 2, "presence_penalty": 1},
        {"temperature": 0, "frequency_penalty": -0.5},
        {"temperature": 1, "n": 4, "logit_bias": {"1": 100, "40": 100, "41": -100}},
    ],
)
def test_every_answer_that_ended_is_valid(running: Running, more: dict[str, Any]) -> None:
    found = asked(running, **more)
    assert check(found.choices) == len(found.choices)


def test_a_short_answer_is_cut(running: Running) -> None:
    found = asked(running, max_tokens=3, temperature=0).choices[0]
    assert found.finish_reason == "length"
    assert found.message.content.startswith("{")


def test_a_class_is_one_of_its_names(running: Running) -> None:
    schema = {"enum": ["red", "green"]}
    found = asked(running, schema, temperature=2, n=16).choices
    assert check(found, schema) == 16
    assert {choice.message.content for choice in found} <= {'"red"', '"green"'}
    assert all(choice.finish_reason == "stop" for choice in asked(running, {"const": "green"}, n=4).choices)


def test_objects_of_any_fields(running: Running) -> None:
    found = asked(running, response_format={"type": "json_object"}, temperature=1, n=16, max_tokens=300).choices
    assert check(found, {"type": "object"}) + sum(choice.finish_reason == "length" for choice in found) == 16
    free = asked(running, response_format={"type": "text"}, temperature=0).choices[0]
    assert free == asked(running, response_format=openai.NOT_GIVEN, temperature=0).choices[0]


def test_a_stream_gives_the_same(running: Running) -> None:
    whole = asked(running, temperature=1, seed=7, logprobs=True).choices[0]
    parts = [part.choices[0] for part in asked(running, temperature=1, seed=7, logprobs=True, stream=True)]
    assert "".join(part.delta.content or "" for part in parts) == whole.message.content
    assert parts[-1].finish_reason == whole.finish_reason == "stop"
    told = [token for part in parts if part.logprobs is not None for token in part.logprobs.content]
    assert told == whole.logprobs.content
    assert b"".join(bytes(token.bytes) for token in told).decode() == whole.message.content


def test_a_stop_text_cuts_as_ever(running: Running) -> None:
    found = asked(running, temperature=0, stop=['"hills"'], logprobs=True).choices[0]
    assert found.finish_reason == "stop"
    assert '"hills"' not in found.message.content
    said = b"".join(bytes(token.bytes) for token in found.logprobs.content).decode()
    assert said.startswith(found.message.content)
    assert found.message.content.startswith(said[: -len(found.logprobs.content[-1].token)])


def test_others_of_a_batch_write_what_they_like(path: Path) -> None:
    settings = Settings(policy=Policy(batch=8, linger=0.3))
    free: Any = {"model": "hill", "messages": SAID, "max_tokens": 40, "temperature": 0}
    with serving(path, settings, backend="native") as running, ThreadPoolExecutor(8) as clients:
        alone = running.openai.chat.completions.create(**free).choices[0].message.content
        bound = [clients.submit(asked, running, temperature=0) for _ in range(4)]
        loose = [clients.submit(running.openai.chat.completions.create, **free) for _ in range(4)]
        assert sum(check(each.result().choices) for each in bound) == 4
        assert {each.result().choices[0].message.content for each in loose} == {alone}


def test_kept_prefixes_change_nothing(path: Path) -> None:
    with serving(path, backend="native", budget="8MiB", prefix_cache="1MiB") as running:
        found = {asked(running, temperature=0).choices[0].message.content for _ in range(3)}
    assert len(found) == 1


def test_continuations_of_prompts_keep_to_a_schema(running: Running) -> None:
    found = running.openai.completions.create(
        model="fox", prompt=["the red fox", "the"], max_tokens=200, n=2, extra_body={"response_format": form(SCHEMA)}
    )
    assert len(found.choices) == 4
    for choice in found.choices:
        if choice.finish_reason == "stop":
            jsonschema.validate(json.loads(choice.text), SCHEMA)


class Answer(BaseModel):
    colour: Literal["red", "green"]
    hill: int | None


def test_the_clients_own_classes_are_filled(running: Running) -> None:
    found = running.openai.chat.completions.parse(
        model="hill", messages=SAID, response_format=Answer, max_tokens=200, temperature=0
    )
    assert found.choices[0].message.parsed.colour in {"red", "green"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (form({"type": "integer", "minimum": 3, "maximum": 2}), "Unsatisfiable"),
        (form({"$ref": "#"}), "can be enforced"),
        ({"type": "json_schema"}, "response_format.json_schema: expected a value, found nothing"),
        ({"type": "grammar"}, "a form whose type is 'text', 'json_object' or 'json_schema'"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": []}}, "expected a valid dictionary|an object"),
    ],
)
def test_what_is_no_schema_is_refused(running: Running, given: Any, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as refused:
        asked(running, response_format=given)
    assert str(refused.value.param).startswith("response_format")
    assert check(asked(running, temperature=0).choices) == 1  # and the server goes on


def test_without_the_library_a_schema_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = packages.is_installed
    monkeypatch.setattr(packages, "is_installed", lambda name: name != "llguidance" and installed(name))
    with serving(path, backend="native") as running:
        with pytest.raises(openai.BadRequestError, match=r"install 'weightpager\[schema\]'") as refused:
            asked(running)
        assert refused.value.param == "response_format"
        assert asked(running, response_format={"type": "text"}, max_tokens=2).choices[0].finish_reason == "length"


def test_a_schema_that_gets_too_hard_ends_its_answer_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does whose expression needs more states than the library may keep; the others of its batch go on."""
    allowed = grammar.Guide.allowed
    asked_so_far: list[int] = []

    def hard(self: grammar.Guide) -> grammar.Allowed:
        asked_so_far.append(1)
        if len(asked_so_far) > 9:
            self._matcher.consume_token(0)  # is no text, after which the matcher has failed
        found: np.ndarray[Any, np.dtype[np.bool_]] = allowed(self)
        return found

    with serving(path, backend="native") as running:
        monkeypatch.setattr(grammar.Guide, "allowed", hard)
        with pytest.raises(openai.BadRequestError, match="words can keep to"):
            asked(running, temperature=0)
        asked_so_far.clear()
        events = asked(running, temperature=0, stream=True)
        with pytest.raises(openai.APIError, match="words can keep to"):
            list(events)
        monkeypatch.undo()
        assert check(asked(running, temperature=0).choices) == 1

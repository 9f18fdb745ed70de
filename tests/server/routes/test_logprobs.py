"""How likely the tokens of an answer were."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import tiny
import tiny_pairs
import weightpager as wp
from running import Running, serving

MOST = 12
SAID: Any = [{"role": "user", "content": "red cat"}]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writer")
    return wp.compile(tiny.writer(folder, compare="none"), folder / "a.bundle", cache=False).path


@pytest.fixture(scope="module", params=["native", "torch"])
def running(path: Path, request: pytest.FixtureRequest) -> Iterator[Running]:
    with serving(path, backend=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A decoder whose tokens may be parts of characters."""
    folder = tmp_path_factory.mktemp("spelling")
    model = tiny_pairs.llama(folder / "llama", initializer_range=0.3)
    with serving(wp.compile(tiny_pairs.tasks(folder, model), folder / "a.bundle", cache=False).path) as running:
        yield running


def asked(running: Running, **more: Any) -> Any:
    return running.openai.completions.create(model="animals", prompt="red cat", **{"max_tokens": MOST, **more})


def told(running: Running, **more: Any) -> Any:
    given = {"max_tokens": MOST, "temperature": 0, "logprobs": True, **more}
    return running.openai.chat.completions.create(model="animals", messages=SAID, **given)


def expected(path: Path, texts: list[str]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Logarithms of the shares of all tokens, in the place of each of these and behind the last."""
    with wp.load(path, backend="torch") as engine, engine.task("animals"):
        model, reader = engine.model("animals"), engine.reader()
        ids = list(reader.prompt("red cat", bos=engine.bundle.task("animals").add_bos_token))  # type: ignore[union-attr]
        begin = len(ids)
        ids += [reader._inner.token_to_id(text) for text in texts]  # type: ignore[union-attr]
        given = np.array([ids])
        logits = model.logits({"input_ids": given, "attention_mask": np.ones_like(given)})[0].astype(np.float64)
    return [row - np.log(np.exp(row).sum()) for row in logits[begin - 1 :]]


@pytest.mark.parametrize("drawn", [{"temperature": 0}, {"temperature": 1.7, "seed": 3, "top_p": 0.9}])
def test_they_are_the_models_own(running: Running, path: Path, drawn: dict[str, Any]) -> None:
    weighed = {"frequency_penalty": 1.5, "logit_bias": {"7": 3}}
    for more in ({}, weighed):
        choice = asked(running, logprobs=5, **drawn, **more).choices[0]
        found = choice.logprobs
        rows = expected(path, found.tokens)
        with wp.load(path) as engine:
            names = engine.reader()._inner  # type: ignore[union-attr]
        for token, share, top, row in zip(found.tokens, found.token_logprobs, found.top_logprobs, rows, strict=False):
            assert share == pytest.approx(row[names.token_to_id(token)], abs=2e-2)
            best = np.sort(row)[::-1][:5]
            assert sorted(top.values(), reverse=True)[:5] == pytest.approx(best, abs=2e-2)
            assert top[token] == share
            assert len(top) in (5, 6)
        assert found.text_offset[:1] in ([], [0])
        assert choice.text == asked(running, **drawn, **more).choices[0].text
        assert [token for token in found.tokens if token[0] != "["] == choice.text.split()  # special ones are named


def test_a_chat_tells_as_many_as_are_asked_for(running: Running) -> None:
    plain = told(running).choices[0]
    assert [each.top_logprobs for each in plain.logprobs.content] == [[]] * len(plain.logprobs.content)
    assert plain.logprobs.refusal is None
    all_words = told(running, top_logprobs=20).choices[0].logprobs.content
    assert {len(each.top_logprobs) for each in all_words} == {16}  # the model has no more
    for place in all_words:
        shares = [each.logprob for each in place.top_logprobs]
        assert shares == sorted(shares, reverse=True)
        assert sum(np.exp(shares)) == pytest.approx(1)
        assert place.logprob == shares[0]
        assert bytes(place.bytes).decode() == place.token
    assert told(running, logprobs=False).choices[0].logprobs is None
    assert told(running, logprobs=None).choices[0].logprobs is None


def test_batches_tell_of_those_that_ask(running: Running) -> None:
    alone = [asked(running, temperature=0, logprobs=2).choices[0], asked(running, temperature=0).choices[0]]
    several = asked(running, temperature=0, logprobs=2, n=3).choices
    assert [choice.text for choice in several] == [alone[0].text] * 3
    for choice in several:
        assert choice.logprobs.tokens == alone[0].logprobs.tokens
        assert choice.logprobs.token_logprobs == pytest.approx(alone[0].logprobs.token_logprobs, abs=1e-2)
    assert alone[1].logprobs is None


@pytest.mark.parametrize("stop", [None, "cow", "at", " "])
def test_a_stream_tells_the_same(running: Running, stop: str | None) -> None:
    given = {"temperature": 1.5, "seed": 4, "logprobs": 3} | ({} if stop is None else {"stop": stop})
    whole = asked(running, **given).choices[0]
    tokens, offsets, shares, text = [], [], [], ""
    for part in asked(running, **given, stream=True):
        text += part.choices[0].text
        if part.choices[0].logprobs is not None:
            tokens += part.choices[0].logprobs.tokens
            offsets += part.choices[0].logprobs.text_offset
            shares += part.choices[0].logprobs.token_logprobs
            assert all(each < len(text) for each in part.choices[0].logprobs.text_offset)
    assert (text, tokens) == (whole.text, whole.logprobs.tokens)
    assert offsets == whole.logprobs.text_offset
    assert shares == whole.logprobs.token_logprobs
    assert all(each < len(text) for each in offsets)  # none of what was cut off
    assert [text[start:].split()[0] for start in offsets] == tokens if stop is None else True


def test_parts_of_characters_are_bytes(spelling: Running) -> None:
    """Bytes of no character are drawn now and then, and a bias asks for those of one."""
    with wp.load(spelling.service.engine.bundle.path) as engine:
        ids = engine.reader().encode("🤖", special=False).ids  # type: ignore[union-attr]
    assert len(ids) == 4
    bias = dict.fromkeys(map(str, ids), 100)
    given: Any = {"model": "fox", "max_tokens": 40, "temperature": 1, "logit_bias": bias}
    for seed in range(4):
        messages: Any = [{"role": "user", "content": "the red fox"}]
        chats = spelling.openai.chat.completions
        found = chats.create(messages=messages, logprobs=True, top_logprobs=2, seed=seed, **given).choices[0]
        content = found.logprobs.content
        said = b"".join(bytes(each.bytes) for each in content)
        assert said.decode("utf-8", "replace").rstrip("\ufffd") == found.message.content.rstrip("\ufffd")
        for each in content:
            assert each.token == bytes(each.bytes).decode("utf-8", "replace")
        assert any(each.token == "\ufffd" for each in content)
        plain = spelling.openai.completions.create(prompt="the red fox", **given, logprobs=1, seed=seed).choices[0]
        assert plain.logprobs.text_offset == sorted(plain.logprobs.text_offset)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"top_logprobs": 3}, "top_logprobs: expected logprobs to be true beside it"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs: expected logprobs to be true beside it"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: expected a number less than or equal to 20, found 21"),
        ({"logprobs": "maybe"}, "logprobs: expected true or false"),
    ],
)
def test_what_cannot_be_told_is_refused(running: Running, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        running.openai.chat.completions.create(model="animals", messages=SAID, **fields)

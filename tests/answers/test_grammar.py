"""Answers by a schema, whatever a model would rather say."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
import tiny_pairs
from weightpager.answers.grammar import Grammars, Guide
from weightpager.errors import RequestError
from weightpager.machine import packages
from weightpager.readers.tokenizer import Tokenizer

END, BEGIN = 1, 0
TOKENIZERS = {"byte-level": tiny_pairs.by_level, "byte fallback": tiny_pairs.by_fallback}


def grammars(make: Any = tiny_pairs.by_level) -> tuple[Grammars, Tokenizer]:
    inner = make()
    tokenizer = Tokenizer(inner, {}, None)
    return Grammars(tokenizer, inner.get_vocab_size() + 5), tokenizer


MADE = {name: grammars(make) for name, make in TOKENIZERS.items()}


def written(guide: Guide, tokenizer: Tokenizer, seed: int, most: int = 400) -> str | None:
    """What comes of tokens that are drawn of those allowed; None where it didn't end."""
    random, said = np.random.default_rng(seed), list[int]()
    for _ in range(most):
        allowed = np.flatnonzero(guide.allowed())
        # Whatever ends a value is likelier, or texts would hardly end.
        ending = [token for token in allowed if tokenizer.bytes.of(int(token)) in b'"]}' or token == END]
        token = int(random.choice(ending if ending and random.random() < 0.4 else allowed))
        if token == END:
            return tokenizer.decode(said)
        guide.take(token)
        said.append(token)
        if guide.complete:
            return tokenizer.decode(said)
    return None


names = st.text(st.sampled_from('abü"\\ '), min_size=1, max_size=4)
leaves: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "string"}),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": "string", "pattern": "^[a-f]{2,5}$"}),
    st.builds(
        lambda least, more: {"type": "integer", "minimum": least, "maximum": least + more}, *[st.integers(0, 99)] * 2
    ),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more}, *[st.integers(0, 3)] * 2
    ),
    st.builds(
        lambda values: {"enum": values}, st.lists(names | st.integers(-9, 9) | st.none(), min_size=1, max_size=4)
    ),
    st.builds(lambda value: {"const": value}, names),
)


def containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def thing(fields: dict[str, Any], required: bool, more: bool) -> dict[str, Any]:
        schema = {"type": "object", "properties": fields, "additionalProperties": more}
        return schema | ({"required": list(fields)} if required else {})

    return st.one_of(
        st.builds(thing, st.dictionaries(names, inner, max_size=3), st.booleans(), st.booleans()),
        st.builds(
            lambda items, least, more: {"type": "array", "items": items, "minItems": least, "maxItems": least + more},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(lambda forms: {"anyOf": forms}, st.lists(inner, min_size=1, max_size=3)),
    )


schemas = st.recursive(leaves, containers, max_leaves=5)


@pytest.mark.parametrize("name", MADE)
@settings(deadline=None, max_examples=80)
@given(schema=schemas, seed=st.integers(0, 99))
def test_whatever_is_drawn_is_valid(name: str, schema: dict[str, Any], seed: int) -> None:
    compiler, tokenizer = MADE[name]
    grammar = compiler.compiled(schema)
    for number in range(3):
        text = written(grammar.begin({END, BEGIN}), tokenizer, seed + number)
        if text is not None:
            jsonschema.validate(json.loads(text), schema)


def test_answers_of_one_grammar_know_nothing_of_each_other() -> None:
    compiler, tokenizer = MADE["byte-level"]
    grammar = compiler.compiled({"enum": ["red", "green"]})
    texts = {written(grammar.begin({END}), tokenizer, seed) for seed in range(20)}
    assert texts == {'"red"', '"green"'}


def test_the_end_may_come_only_where_the_answer_is_whole() -> None:
    compiler, tokenizer = MADE["byte-level"]
    guide = compiler.compiled({"type": "integer"}).begin({END})
    assert not guide.allowed()[END]
    guide.take(tokenizer.encode("7", special=False).ids[0])
    assert guide.allowed()[END]
    assert not guide.complete
    assert not guide.allowed()[BEGIN]  # a special token is no text


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (nested(40), "at most 32 values inside each other"),
        (nested(900), "at most 32 values inside each other"),
        ({"enum": ["a" * 40000]}, "at most 32768 characters"),
        ({"type": "object", "properties": {f"a{n}": {"$ref": "#"} for n in range(5000)}}, "at most 32768 characters"),
        ({"$ref": "#"}, "that can be enforced"),
        ({"$ref": "http://127.0.0.1:9/schema"}, "that can be enforced"),
        ({"$ref": "file:///etc/passwd"}, "that can be enforced"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "Unsatisfiable"),
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 10**300}, "up to 9007199254740992"),
        ({"type": "number", "maximum": float("nan")}, "up to 9007199254740992"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "x-guidance"),
        ({"type": "thing"}, "Invalid type"),
        ({"type": "string", "pattern": "(?=a)b"}, "regex"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"enum": ["\ud800"]}, "expected a JSON schema"),
        (["a"], "expected a JSON schema"),
        (3, "expected a JSON schema"),
    ],
)
def test_a_schema_that_nobody_can_keep_to_is_refused(schema: object, words: str) -> None:
    with pytest.raises(RequestError, match=words) as refused:
        MADE["byte-level"][0].compiled(schema)
    assert refused.value.param == "response_format"
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "pattern", ["^(a+)+$", "^((a|b|c){1,1000}){1,1000}$", "(.*a){30}.{30}", "[ab]*a[ab]{20}$", "^(\\w{0,500}){0,500}x$"]
)
def test_a_hostile_expression_takes_bounded_work(pattern: str) -> None:
    compiler, tokenizer = MADE["byte-level"]
    start = time.process_time()
    try:
        written(compiler.compiled({"type": "string", "pattern": pattern}).begin({END}), tokenizer, 0, 200)
    except RequestError as error:
        assert "too many" in str(error)  # noqa: PT017 - either is right
    assert time.process_time() - start < 20


def test_other_tokenizers_are_refused() -> None:
    tokenizer = Tokenizer(tiny.tokenizer().backend_tokenizer, {}, None)
    with pytest.raises(RequestError, match="a token for each byte"):
        Grammars(tokenizer, 16)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "is_installed", lambda _: False)
    with pytest.raises(RequestError, match=r"install 'weightpager\[schema\]'") as refused:
        grammars()
    assert refused.value.param == "response_format"


def test_a_vocabulary_without_the_signs_of_json_is_told_of() -> None:
    """As one is from which words were taken."""
    inner = tiny_pairs.by_level()
    tokenizer = Tokenizer(inner, {}, None)
    few = Grammars(tokenizer, inner.token_to_id("$"))  # bytes before it alone
    with pytest.raises(RequestError, match="expected a"):
        written(few.compiled({"type": "object"}).begin({END}), tokenizer, 0)

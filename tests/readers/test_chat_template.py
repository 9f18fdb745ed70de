"""Chat templates are programs of whoever made the bundle."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

import tiny
from running import Running, serving
from weightpager.engine import Engine
from weightpager.errors import RequestError
from weightpager.readers.chat_template import ChatTemplate
from weightpager.readers.tokenizer import Tokenizer

MESSAGES = [
    {"role": "system", "content": "  be brief\n"},
    {"role": "user", "content": "<b>'red' & é</b>"},
    {"role": "assistant", "content": "cat"},
    {"role": "user", "content": "sun"},
]
CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}"""
MARKED = """{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}
{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}
{% else %}[{{ m.content | tojson }}]{% endif %}{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"""
COUNTED = """{% set ns = namespace(users=0, self='me') %}{% for m in messages if m.role != 'system' %}
{% if m.role == 'user' %}{% set ns.users = ns.users + 1 %}{% endif %}
{{ dict(role=m.role, text=m.content) | tojson(indent=2) }}{{ strftime_now('') }}
{% endfor %}{{ ns.users }}{{ tools is none }}{{ documents is defined }}{{ missing }}{{ ns.self }}"""
ENDLESS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


def template(source: str | None, characters: int = 10_000, seconds: float = 0.2) -> closing[ChatTemplate]:
    return closing(ChatTemplate(source, {"bos_token": "<s>"}, characters, seconds))


@pytest.mark.parametrize("source", [CHATML, MARKED, COUNTED])
def test_conversations_are_written_as_transformers_writes_them(source: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = source
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    wanted = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    with closing(ChatTemplate.of(tiny.reader(tokenizer), 10_000)) as found:
        assert found.render(MESSAGES) == wanted
        assert found.render(MESSAGES) == wanted


def test_the_default_one_of_several_counts() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = {"tool_use": "a", "default": "b"}
    with closing(ChatTemplate.of(tiny.reader(tokenizer), 100)) as found:
        assert found.render(MESSAGES) == "b"
    tokenizer.chat_template = {"tool_use": "a"}
    with (
        closing(ChatTemplate.of(tiny.reader(tokenizer), 100)) as found,
        pytest.raises(RequestError, match="no default one"),
    ):
        found.render(MESSAGES)


def test_without_one_texts_are_lines() -> None:
    with closing(ChatTemplate.of(tiny.reader(), 10)) as found:
        assert found.render(MESSAGES[2:]) == "cat\nsun\n"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ raise_exception('no system, please') }}", "no system, please"),
        ("{% if %}", "Expected an expression"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "recursion"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        (r"{{ '\ud83d' }}", "half of a surrogate pair"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "name of a namespace's value"),
    ],
)
def test_what_a_template_refuses_is_said(source: str, problem: str) -> None:
    with template(source) as found:
        for _ in range(2):
            with pytest.raises(RequestError, match=f"the model's chat template takes: .*{problem}"):
                found.render(MESSAGES)


@pytest.mark.parametrize(
    ("source", "limit"),
    [
        (ENDLESS, "0.2 s of computing"),
        ("{{ 9 ** (9 ** 9) }}", "0.2 s of computing"),
        ("{{ 'a' * 10 ** 11 }}", "the memory that it may use"),
        ("{{ 'a' | center(10 ** 10) }}", "the memory that it may use"),
        ("{{ '%9999999999d' % 1 }}", "the memory that it may use"),
        ("{% set n = namespace(v='a') %}{% for a in range(99) %}{% set n.v = n.v ~ n.v %}{% endfor %}", "the memory"),
        ("{% for a in range(100000) %}{{ messages[0].content }}{% endfor %}", "a text of 10000 characters"),
    ],
)
def test_a_template_that_takes_too_much_is_stopped(source: str, limit: str) -> None:
    source = "{% if messages | length == 1 %}" + source + "{% else %}well{% endif %}"
    with template(source, seconds=0.2 if "computing" in limit else 5) as found:
        for _ in range(2):
            words = f"^the model's chat template took more than {limit}.* for these messages and was stopped$"
            with pytest.raises(RequestError, match=words) as refused:
                found.render(MESSAGES[:1])
            assert (refused.value.param, refused.value.code) == ("messages", "chat_template_limit")


@pytest.mark.slow
def test_a_conversation_after_one_that_was_stopped_is_written() -> None:
    with template("{% if messages | length == 1 %}" + ENDLESS + "{% endif %}well") as found:
        for _ in range(2):
            with pytest.raises(RequestError, match="0.2 s of computing"):
                found.render(MESSAGES[:1])
            assert found.render(MESSAGES) == "well"


def test_a_conversation_too_long_for_the_process_is_refused() -> None:
    with template("well") as found:
        for length in (10_001, 2**28):
            with pytest.raises(RequestError, match="took more than a text of 10000 characters") as refused:
                found.render([{"role": "user", "content": "a" * length}])
            assert refused.value.code == "chat_template_limit"
        assert found.render([{"role": "user", "content": "a" * 10_000}]) == "well"


def test_a_process_that_was_ended_is_replaced() -> None:
    with template("{{ messages[0].content }}") as found:
        assert found.render(MESSAGES[3:]) == "sun"
        assert found._process is not None
        found._process[0].kill()
        found._process[0].wait()
        assert found.render(MESSAGES[3:]) == "sun"


@pytest.fixture
def endless(writer_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Whose conversations never end."""

    read = Engine.reader

    def endless(engine: Engine) -> Tokenizer:
        found = read(engine)
        assert isinstance(found, Tokenizer)
        found.chat_template = ENDLESS
        return found

    monkeypatch.setattr(Engine, "reader", endless)
    with serving(writer_bundle) as running:
        yield running


@pytest.mark.slow
def test_a_template_that_never_ends_holds_up_nobody(endless: Running) -> None:
    body = {"model": "animals", "messages": [{"role": "user", "content": "cat"}]}
    with endless.http() as client, ThreadPoolExecutor(1) as pool:
        chat = pool.submit(client.post, "/v1/chat/completions", json=body)
        while not endless.service.queue._reserved:
            time.sleep(0.005)
        assert endless.openai.completions.create(model="animals", prompt="cat", max_tokens=2).choices
        assert not chat.done()
        refused = chat.result()
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "chat_template_limit", "messages")
    assert error["message"].startswith("task 'animals': the model's chat template took more than 2 s of computing")
    assert error["message"].endswith("; send a prompt of your own to /v1/completions")
    assert not endless.service.queue._reserved


def test_a_server_that_ends_ends_its_template(endless: Running) -> None:
    body = {"model": "animals", "messages": [{"role": "user", "content": "cat"}]}
    with endless.http() as client, ThreadPoolExecutor(1) as pool:
        chat = pool.submit(client.post, "/v1/chat/completions", json=body)
        template = endless.service.bundles[""].readers().texts._template
        while template._process is None:
            time.sleep(0.005)
        process = template._process[0]
        template.close()
        assert process.returncode is not None
        assert chat.result().status_code == 400

"""Several answers to one request, and answers whose words are weighed otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import weightpager as wp
from running import Running, serving

MOST = 12


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writer")
    return wp.compile(tiny.writer(folder, compare="none"), folder / "a.bundle", cache=False).path


@pytest.fixture(scope="module")
def running(path: Path) -> Iterator[Running]:
    with serving(path) as running:
        yield running


def asked(running: Running, **more: Any) -> Any:
    return running.openai.completions.create(model="animals", prompt="red cat", max_tokens=MOST, **more)


def test_choices_are_those_of_seeds_that_count_on(running: Running) -> None:
    found = asked(running, n=3, temperature=1, seed=5)
    alone = [asked(running, temperature=1, seed=5 + number).choices[0].text for number in range(3)]
    assert [choice.text for choice in found.choices] == alone
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert found.usage.prompt_tokens == asked(running).usage.prompt_tokens
    assert len({choice.text for choice in asked(running, n=16, temperature=1.5).choices}) > 1


def test_choices_of_several_prompts_lie_together_and_stream(running: Running) -> None:
    given = {"model": "animals", "prompt": ["red cat", "dog"], "max_tokens": MOST, "temperature": 0}
    one = [choice.text for choice in running.openai.completions.create(**given).choices]
    two = [choice.text for choice in running.openai.completions.create(**given, n=2).choices]
    assert two == [one[0], one[0], one[1], one[1]]
    texts: Counter[int] = Counter()
    said: dict[int, str] = dict.fromkeys(range(4), "")
    for event in running.openai.completions.create(**given, n=2, stream=True):
        for choice in event.choices:
            said[choice.index] += choice.text
            texts[choice.index] += choice.finish_reason is not None
    assert [*said.values()] == two
    assert texts == dict.fromkeys(range(4), 1)
    chat = running.openai.chat.completions.create(
        model="animals", messages=[{"role": "user", "content": "dog"}], max_tokens=4, temperature=0, n=2
    )
    assert len({choice.message.content for choice in chat.choices}) == 1
    assert len(chat.choices) == 2


def greedy(path: Path, frequency: float, presence: float, bias: dict[int, float]) -> list[int]:
    """The tokens by the formula of OpenAI's reference, a token at a time."""
    with wp.load(path) as engine, engine.task("animals"):
        model, reader = engine.model("animals"), engine.reader()
        ids = list(reader.prompt("red cat", bos=engine.bundle.task("animals").add_bos_token))  # type: ignore[union-attr]
        said: list[int] = []
        for _ in range(MOST):
            given = np.array([ids + said])
            logits = model.logits({"input_ids": given, "attention_mask": np.ones_like(given)})[0, -1].astype(np.float64)
            for token, added in bias.items():
                logits[token] += added
            for token, times in Counter(said).items():
                logits[token] -= frequency * times + presence
            said.append(int(logits.argmax()))
            if said[-1] in model.eos_token_ids:
                break
        return said


@pytest.mark.parametrize(
    ("frequency", "presence", "bias"),
    [(0.0, 0.0, {}), (1.5, 0.0, {}), (0.0, 2.0, {}), (-2.0, 0.5, {}), (0.0, 0.0, {7: 100.0}), (0.5, 0.1, {7: -100.0})],
)
def test_words_weigh_as_openai_says(
    running: Running, path: Path, frequency: float, presence: float, bias: dict[int, float]
) -> None:
    stated = {"frequency_penalty": frequency, "presence_penalty": presence}
    found = asked(running, temperature=0, **stated, logit_bias={str(token): each for token, each in bias.items()})
    wanted = greedy(path, frequency, presence, bias)
    with wp.load(path) as engine:
        text = engine.reader().decode([token for token in wanted if token > 3])  # type: ignore[operator, union-attr]
    assert found.choices[0].text.split() == text.split()
    if bias.get(7) == 100:
        assert set(wanted) == {7}

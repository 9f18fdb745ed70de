"""The real archives, fetched by the real clients."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from json_lines import rows
from weightpager.config import cache_dir
from weightpager_lab import samples
from weightpager_lab.samples import Missing, Sample, corpora, download, pins, tasks
from weightpager_lab.samples.download import Fetcher
from weightpager_lab.samples.recipes import Item, Recipe, normalise

pytestmark = pytest.mark.slow

TASKS = ("sentiment", "spam", "topic", "language", "genre", "pos")
DOMAINS = ("code", "news", "fiction", "german")
SIZES = {  # train, validation, eval: all there is, in full samples
    "sentiment": (6423, 915, 1833),
    "spam": (4035, 481, 1188),
    "topic": (1513, 177, 434),
    "language": (3587, 573, 937),
    "genre": (6843, 996, 2335),
    "pos": (35328, 4855, 11422),
}
# With a value: people who write about mail name fields, too.
FIELDS = "return-path|delivered-to|message-id|mime-version|errors-to|in-reply-to|list-[a-z]+"
HEADER = re.compile(rf"(^|\s)({FIELDS}): \S", re.IGNORECASE)
TAG = re.compile(r"\[[\w.-]+\]")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Downloads are shared with the user's cache; what is made of them is made anew."""
    shared = cache_dir() / "archives"
    shared.mkdir(parents=True, exist_ok=True)
    directory = tmp_path_factory.mktemp("cache")
    (directory / "archives").symlink_to(shared)
    return directory


@pytest.fixture(scope="module", autouse=True)
def _archives_are_parsed_once() -> Iterator[None]:
    """Samples of other sizes are made of the same items."""
    parsed: dict[str, list[Item]] = {}

    def once(recipe: Recipe) -> Recipe:
        def read(fetch: Fetcher) -> list[Item]:
            if recipe.name not in parsed:
                parsed[recipe.name] = list(recipe.read(fetch))
            return parsed[recipe.name]

        return replace(recipe, read=read)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_TASKS", [once(recipe) for recipe in tasks._TASKS])
        yield


def ready(made: tuple[list[Sample], list[Missing]], name: str) -> Sample:
    for missing in made[1]:
        if missing.name == name:
            pytest.skip(missing.reason)
    return next(sample for sample in made[0] if sample.name == name)


@pytest.fixture(scope="module")
def default(cache: Path) -> tuple[list[Sample], list[Missing]]:
    return samples.prepare(cache, report=print)


@pytest.fixture(scope="module")
def whole(cache: Path) -> tuple[list[Sample], list[Missing]]:
    return samples.prepare(cache, train_items=10**6, eval_items=10**6, report=print)


@pytest.fixture(scope="module")
def texts(cache: Path) -> tuple[list[Sample], list[Missing]]:
    return samples.language_modeling(cache, report=print)


def splits(sample: Sample) -> list[list[dict[str, Any]]]:
    return [rows(path) for path in (sample.train, sample.validation, sample.eval)]


def text_of(row: dict[str, Any]) -> str:
    return normalise(row["text"] if "text" in row else " ".join(row["tokens"]))


def labels_of(row: dict[str, Any]) -> list[str]:
    return [row["label"]] if "label" in row else list(row["tags"])


@pytest.mark.long
@pytest.mark.parametrize("name", TASKS)
def test_sizes_of_the_splits(whole: tuple[list[Sample], list[Missing]], name: str) -> None:
    assert tuple(len(split) for split in splits(ready(whole, name))) == SIZES[name]


@pytest.mark.long
@pytest.mark.parametrize("name", TASKS)
def test_no_text_occurs_twice(whole: tuple[list[Sample], list[Missing]], name: str) -> None:
    found = [text_of(row) for split in splits(ready(whole, name)) for row in split]
    assert len(found) == len(set(found))


@pytest.mark.parametrize("name", TASKS)
def test_default_samples(default: tuple[list[Sample], list[Missing]], name: str) -> None:
    sample = ready(default, name)
    train, validation, evaluation = splits(sample)
    assert len(train) == min(2000, SIZES[name][0])
    assert len(validation) == min(500, SIZES[name][1])
    assert len(evaluation) == min(500, SIZES[name][2])
    for split in (train, validation, evaluation):
        counts = Counter(label for row in split for label in labels_of(row))
        assert set(counts) == set(sample.classes)
        assert max(counts.values()) < 0.8 * counts.total()
    assert all(len(row["tokens"]) == len(row["tags"]) for row in train if "tokens" in row)


def test_small_samples_cover_the_classes(cache: Path) -> None:
    size = 20
    made, _ = samples.prepare(cache, train_items=size, eval_items=size, report=print)
    for sample in made:
        for split in splits(sample):
            found = {label for row in split for label in labels_of(row)}
            assert len(split) == size
            assert found == set(sample.classes)


def test_a_second_call_is_quick(cache: Path, default: tuple[list[Sample], list[Missing]]) -> None:
    if default[1]:
        pytest.skip(f"missing: {default[1]}")
    said: list[str] = []
    start = time.perf_counter()
    assert samples.prepare(cache, report=said.append) == default
    assert time.perf_counter() - start < 0.5
    assert said == []


@pytest.mark.long
def test_mails_do_not_say_where_they_came_from(whole: tuple[list[Sample], list[Missing]]) -> None:
    for split in splits(ready(whole, "spam")):
        for row in split:
            assert not HEADER.search(row["text"])
            assert not TAG.search(row["text"])
            assert not re.match(r"\W*(re|fwd?):", row["text"], re.IGNORECASE)
            assert not re.search(r"[\w.]@[\w-]+\.\w|https?://", row["text"])


@pytest.mark.long
def test_tasks_of_one_source_hold_out_the_same_documents(
    whole: tuple[list[Sample], list[Missing]], texts: tuple[list[Sample], list[Missing]]
) -> None:
    held_out = ready(texts, "fiction").eval.read_text(encoding="utf-8")
    train = [row["text"] for row in rows(ready(whole, "genre").train) if row["label"] == "fiction"]
    assert not any(text in held_out for text in train)
    held_out = normalise(ready(texts, "news").eval.read_text(encoding="utf-8"))
    assert not any(text_of(row) in held_out for row in rows(ready(whole, "topic").train))


@pytest.mark.long
def test_universal_tags_agree_with_the_published_counts(cache: Path) -> None:
    """Tokens of the whole corpus by universal tag, as NLTK's copy of it has them."""
    try:
        path = download.fetch(pins.BROWN, cache)
    except samples.SampleUnavailable as error:
        pytest.skip(str(error))
    words = (word for text in corpora.documents(path) for sentence in text.sentences for word in sentence)
    counts = Counter(tasks.universal_tag(word.tag) for word in words)
    published = {"NOUN": 275558, "VERB": 182750, ".": 147565, "ADP": 144766, "DET": 137019, "ADJ": 83721}
    published |= {"ADV": 56239, "PRON": 49334, "CONJ": 38151, "PRT": 29829, "NUM": 14874, "X": 1386}
    assert {tag: abs(counts[tag] - count) for tag, count in published.items() if abs(counts[tag] - count) > 150} == {}


@pytest.mark.parametrize("name", DOMAINS)
def test_texts(texts: tuple[list[Sample], list[Missing]], name: str) -> None:
    sample = ready(texts, name)
    assert sample.kind == "language-modeling"
    contents = [path.read_text(encoding="utf-8") for path in (sample.train, sample.validation, sample.eval)]
    sizes = [len(content) for content in contents]
    assert sizes[0] > (500_000 if name != "german" else 15_000)
    assert sizes[2] > (100_000 if name != "german" else 4_000)
    long_lines = {line for line in contents[0].splitlines() if len(line) > 150}
    assert long_lines.isdisjoint(contents[2].splitlines())


def test_minilm(cache: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    directory = samples.minilm(cache)
    model = AutoModel.from_pretrained(directory)
    assert sum(weight.numel() for weight in model.parameters()) == 22_713_216
    assert AutoTokenizer.from_pretrained(directory)("hello").input_ids == [101, 7592, 102]


@pytest.mark.long
def test_smollm2(cache: Path, texts: tuple[list[Sample], list[Missing]]) -> None:
    """Rows of a head in the wrong order, or another tokenizer, would make it babble."""
    pytest.importorskip("gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = samples.smollm2(cache)
    assert "4-bit" in (directory / "README.md").read_text(encoding="utf-8")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)
    assert model.dtype == torch.bfloat16
    assert tokenizer.pad_token == "<|im_end|>"
    text = ready(texts, "news").eval.read_text(encoding="utf-8")[:8000]
    tokens = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokens) == text
    windows = torch.tensor(tokens[:1024]).view(4, 256)
    with torch.no_grad():
        loss = model.float()(input_ids=windows, labels=windows).loss  # bfloat16 takes long without its instructions
    assert torch.exp(loss) < 50

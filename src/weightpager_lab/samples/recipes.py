"""From the items of a source to the files of a sample, and the rules by which items are split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from weightpager.errors import ConfigError
from weightpager_lab.samples.download import Fetcher, build_once, key_of
from weightpager_lab.samples.sample import Missing, Sample, collect

SPLITS = ("train", "validation", "eval")
# Shares of the groups, not of the items. To change them or the salt is to change every task: raise download.SCHEMA.
_EVAL, _VALIDATION = 0.2, 0.1
_SALT = "weightpager"


def split_sizes(train: int, held_out: int) -> dict[str, int]:
    """The most items of each split; validation and evaluation have as many each."""
    return dict(zip(SPLITS, (train, held_out, held_out), strict=True))


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse a split without items.

    Raises:
        ConfigError: a size is not positive.
    """
    for split, size in sizes.items():
        if size < 1:
            raise ConfigError(f"size of {split}: expected at least 1, got {size}")


@dataclass(frozen=True)
class Item:
    """One row of a data set.

    Attributes:
        text: what the row is about; two items whose texts differ only in case and white space are duplicates.
        group: items of one group always land in the same split; what could give an answer away lies in one group.
        labels: every class that occurs in the row.
        row: what is written to the file.
    """

    text: str
    group: str
    labels: tuple[str, ...]
    row: dict[str, Any]


def labelled(text: str, label: str, group: str) -> Item:
    return Item(text, group, (label,), {"text": text, "label": label})


def tagged(tokens: Sequence[str], tags: Sequence[str], group: str) -> Item:
    """An item of a token-classification task: one tag per token."""
    return Item(" ".join(tokens), group, tuple(sorted(set(tags))), {"tokens": list(tokens), "tags": list(tags)})


def completed(prompt: str, completion: str, group: str) -> Item:
    """An item of a text-generation task. The completion begins with a blank, as words behind others do."""
    return Item(prompt, group, (), {"prompt": prompt, "completion": f" {completion}"})


def document(text: str, group: str) -> Item:
    return Item(text, group, (), {})


def normalise(text: str) -> str:
    """The text in lower case with single spaces: the identity of duplicates."""
    return " ".join(text.lower().split())


def distinct(items: Iterable[Item]) -> list[Item]:
    """The items without duplicates: the first of each stays, and none of those whose labels contradict each other."""
    first: dict[str, Item] = {}
    contradicted: set[str] = set()
    for item in items:
        key = normalise(item.text)
        if first.setdefault(key, item).labels != item.labels:
            contradicted.add(key)
    return [item for key, item in first.items() if key not in contradicted]


def split_of(group: str) -> str:
    """The split of a group: a function of its name alone, so that it never changes as data come and go."""
    place = _fraction(f"{_SALT}:{group}")
    if place < _EVAL:
        return "eval"
    return "validation" if place < _EVAL + _VALIDATION else "train"


def subset(items: Iterable[Item], limit: int) -> list[Item]:
    """At most ``limit`` items in an order that depends on their texts alone.

    The first item that shows a class comes before all that show nothing new, so that a small subset covers the
    classes too; a larger ``limit`` only adds items.
    """
    ordered = sorted(items, key=lambda item: (_fraction(f"order:{item.text}"), item.text))
    seen: set[str] = set()
    novel: list[Item] = []
    rest: list[Item] = []
    for item in ordered:
        (rest if seen.issuperset(item.labels) else novel).append(item)
        seen.update(item.labels)
    return (novel + rest)[:limit]


def _fraction(text: str) -> float:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


@dataclass(frozen=True)
class Recipe:
    """How one sample is made.

    Attributes:
        name: the sample's.
        kind: the sample's.
        classes: the sample's.
        source: names exactly what ``read`` reads; a sample is made again when it changes.
        read: the items, fetching the archive that they come from.
        write: writes a split's items to a file, no more than a limit allows, and says what it has written.
        suffix: of the files.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    source: str
    read: Callable[[Fetcher], Iterable[Item]]
    write: Callable[[list[Item], int, Path], str]
    suffix: str


def follow(
    recipes: Iterable[Recipe], cache: Path, limits: Mapping[str, int], report: Callable[[str], None]
) -> tuple[list[Sample], list[Missing]]:
    """Makes the samples that the cache lacks; ``limits`` holds one per split.

    Raises:
        ConfigError: a limit is not positive.
        SampleUnavailable: not one of the samples can be had.
    """
    check_sizes(limits)
    fetch = Fetcher(cache, report)
    return collect((recipe.name, partial(make, recipe, cache, limits, fetch, report)) for recipe in recipes)


def make(
    recipe: Recipe, cache: Path, limits: Mapping[str, int], fetch: Fetcher, report: Callable[[str], None]
) -> Sample:
    """The recipe's sample in ``cache``; nothing is fetched if it is there already."""

    def build(directory: Path) -> None:
        written = _write_splits(recipe, recipe.read(fetch), limits, directory)
        about = {"name": recipe.name, "kind": recipe.kind, "classes": recipe.classes, "source": recipe.source}
        (directory / "about.json").write_text(json.dumps({**about, **written}, indent=2) + "\n", encoding="utf-8")
        report(f"{recipe.name}: " + ", ".join(f"{split} {size}" for split, size in written.items()))

    key = key_of(source=recipe.source, limits=dict(limits))
    directory = build_once(cache / "samples" / f"{recipe.name}-{key}", build)
    files = (directory / f"{split}{recipe.suffix}" for split in SPLITS)
    return Sample(recipe.name, recipe.kind, recipe.classes, *files)


def _write_splits(recipe: Recipe, items: Iterable[Item], limits: Mapping[str, int], directory: Path) -> dict[str, str]:
    splits: dict[str, list[Item]] = {split: [] for split in SPLITS}
    for item in distinct(items):
        splits[split_of(item.group)].append(item)
    return {
        split: recipe.write(splits[split], limits[split], directory / f"{split}{recipe.suffix}") for split in SPLITS
    }

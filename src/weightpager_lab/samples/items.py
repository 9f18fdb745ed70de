"""Items of a data set, and the rules by which they are split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightpager.errors import ConfigError

SPLITS = ("train", "validation", "eval")
# Shares of the groups, not of the items. To change them or the salt is to change every task: raise building.SCHEMA.
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
    """An item of a text-classification task."""
    return Item(text, group, (label,), {"text": text, "label": label})


def tagged(tokens: Sequence[str], tags: Sequence[str], group: str) -> Item:
    """An item of a token-classification task: one tag per token."""
    return Item(" ".join(tokens), group, tuple(sorted(set(tags))), {"tokens": list(tokens), "tags": list(tags)})


def completed(prompt: str, completion: str, group: str) -> Item:
    """An item of a text-generation task. The completion begins with a blank, as words behind others do."""
    return Item(prompt, group, (), {"prompt": prompt, "completion": f" {completion}"})


def document(text: str, group: str) -> Item:
    """An item of a language-modelling task."""
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

"""Six labelled tasks for one encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from weightpager_lab.samples import pins
from weightpager_lab.samples.download import Fetcher
from weightpager_lab.samples.items import Item, split_sizes, subset
from weightpager_lab.samples.recipes import Recipe, follow
from weightpager_lab.samples.sample import Missing, Sample
from weightpager_lab.samples.text import genre, language, pos, sentiment, spam, topic

__all__ = ["Missing", "Sample", "prepare"]


def prepare(
    cache: Path, *, train_items: int = 2000, eval_items: int = 500, report: Callable[[str], None]
) -> tuple[list[Sample], list[Missing]]:
    """The six tasks' files in ``cache``, made at the first call, and the reasons for tasks that cannot be had.

    The splits are a property of the archives: other sizes take fewer or more items of the same splits.

    Args:
        cache: a directory, created if need be.
        train_items: at most so many items to learn from, per task.
        eval_items: at most so many in each of the validation and the evaluation split.
        report: called with a line of text before a download and after a task has been written.

    Raises:
        ConfigError: a size is not positive.
        SampleUnavailable: not one of the tasks can be had.
    """
    return follow(_RECIPES, cache, split_sizes(train_items, eval_items), report)


def write_rows(items: list[Item], limit: int, path: Path) -> str:
    """Writes at most ``limit`` items as JSON lines."""
    chosen = subset(items, limit)
    lines = (json.dumps(item.row, ensure_ascii=False) + "\n" for item in chosen)
    path.write_text("".join(lines), encoding="utf-8")
    return f"{len(chosen)} items"


def _recipe(
    name: str, classes: tuple[str, ...], archive: pins.Archive, read: Callable[[Path], Iterable[Item]], kind: str
) -> Recipe:
    def fetch_and_read(fetch: Fetcher) -> Iterable[Item]:
        return read(fetch(archive))

    return Recipe(name, kind, classes, archive.provenance, fetch_and_read, write_rows, ".jsonl")


_RECIPES = (
    _recipe("sentiment", sentiment.CLASSES, pins.VADER, sentiment.read, "text-classification"),
    _recipe("spam", spam.CLASSES, pins.SPAM_ASSASSIN, spam.read, "text-classification"),
    _recipe("topic", topic.CLASSES, pins.BBC, topic.read, "text-classification"),
    _recipe("language", language.CLASSES, pins.DJANGO, language.read, "text-classification"),
    _recipe("genre", genre.CLASSES, pins.BROWN, genre.read, "text-classification"),
    _recipe("pos", pos.CLASSES, pins.BROWN, pos.read, "token-classification"),
)

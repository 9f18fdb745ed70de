"""From the items of a source to the files of a sample."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from weightpager_lab.samples.download import Fetcher, build_once, key_of
from weightpager_lab.samples.items import SPLITS, Item, check_sizes, distinct, split_of
from weightpager_lab.samples.sample import Missing, Sample, collect


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

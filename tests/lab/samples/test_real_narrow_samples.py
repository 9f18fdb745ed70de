"""The narrow jobs' real sources, fetched by the real clients: counts, and that nothing held out is learnt."""

from __future__ import annotations

import pytest

from json_lines import rows
from weightpager.config import cache_dir
from weightpager_lab.samples import Missing, Sample, text_generation
from weightpager_lab.samples.recipes import normalise

pytestmark = pytest.mark.long

SIZES = {  # train, validation, eval: all there is; describe and normalise depend on versions
    "translate": (2747, 376, 788),
    "punctuate": (32390, 4465, 10499),
    "title": (2332, 311, 708),
    "feel": (6423, 915, 1833),
}
LEAST = {"normalise": (7000, 900, 1900), "describe": (2500, 300, 700)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Sample], list[Missing]]:
    """Downloads are shared with the user's cache; what is made of them is made anew."""
    shared = cache_dir() / "archives"
    shared.mkdir(parents=True, exist_ok=True)
    directory = tmp_path_factory.mktemp("cache")
    (directory / "archives").symlink_to(shared)
    return text_generation(directory, train_items=10**6, eval_items=10**6, report=print)


def splits(made: tuple[list[Sample], list[Missing]], name: str) -> list[list[dict[str, str]]]:
    for missing in made[1]:
        if missing.name == name:
            pytest.skip(missing.reason)
    sample = next(sample for sample in made[0] if sample.name == name)
    return [rows(path) for path in (sample.train, sample.validation, sample.eval)]


@pytest.mark.parametrize("name", SIZES)
def test_sizes_of_the_splits(whole: tuple[list[Sample], list[Missing]], name: str) -> None:
    assert tuple(len(split) for split in splits(whole, name)) == SIZES[name]


@pytest.mark.parametrize("name", LEAST)
def test_sizes_that_depend_on_versions(whole: tuple[list[Sample], list[Missing]], name: str) -> None:
    assert all(len(split) >= least for split, least in zip(splits(whole, name), LEAST[name], strict=True))


@pytest.mark.parametrize("name", [*SIZES, *LEAST])
def test_no_prompt_occurs_twice(whole: tuple[list[Sample], list[Missing]], name: str) -> None:
    found = [normalise(row["prompt"]) for split in splits(whole, name) for row in split]
    assert len(found) == len(set(found))
    assert all(row["completion"].startswith(" ") for split in splits(whole, name) for row in split)


def test_a_value_is_learnt_or_held_out_whatever_the_language(whole: tuple[list[Sample], list[Missing]]) -> None:
    train, validation, held_out = ({row["completion"] for row in split} for split in splits(whole, "normalise"))
    assert train.isdisjoint(validation | held_out)
    assert validation.isdisjoint(held_out)

"""The schema for editors agrees with what the compiler accepts."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from test_docs import blocks

from weightpager.compiler.task_file.schema import schema, text

PAGES = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def editor() -> jsonschema.Draft202012Validator:
    found = schema()
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_the_copy_that_is_given_out_is_up_to_date() -> None:
    given_out = (files("weightpager.cli") / "starter" / "tasks.schema.json").read_text(encoding="utf-8")
    assert given_out == text(), "run: python -m weightpager.compiler.task_file.schema"


@pytest.mark.parametrize(("page", "count"), [("task-file.md", 2), ("tutorial.md", 1)])
def test_the_examples_of_the_documentation_pass(editor: jsonschema.Draft202012Validator, page: str, count: int) -> None:
    examples = blocks("yaml", (PAGES / page).read_text(encoding="utf-8"))
    assert len(examples) == count
    for example in examples:
        editor.validate(yaml.safe_load(re.sub(r"(\d)e-", r"\1.0e-", example)))


@pytest.mark.parametrize(
    "change",
    [
        {"alignment": "inf"},
        {"alignment": float("inf")},
        {"max_switch": "8MiB"},
        {"page": 65536},
        {"page": "64KiB"},
        {"recover": "closed-form"},
        {"recover": {"method": "finetune", "low_rank": 4}},
    ],
)
def test_what_the_compiler_takes_passes(editor: jsonschema.Draft202012Validator, change: dict[str, Any]) -> None:
    editor.validate(SMALLEST | change)


@pytest.mark.parametrize(
    "change",
    [
        {"sparcity": 0.5},
        {"sparsity": 1},
        {"alignment": -1},
        {"block": "16"},
        {"page": "large"},
        {"recover": "magic"},
        {"tasks": {}},
        {"tasks": {"Spam": {"kind": "language-modeling", "train": "a", "eval": "b"}}},
        {"tasks": {"spam": {"kind": "guessing", "train": "a", "eval": "b"}}},
        {"training": {"steps": 0}},
    ],
)
def test_mistakes_are_found(editor: jsonschema.Draft202012Validator, change: dict[str, Any]) -> None:
    assert not editor.is_valid(SMALLEST | change)


def test_every_key_is_described() -> None:
    found = schema()
    for section in (found, *found["$defs"].values()):
        for key, value in section["properties"].items():
            assert value.get("description"), key


SMALLEST: dict[str, Any] = {
    "model": "model",
    "tasks": {"spam": {"kind": "text-classification", "train": "a.jsonl", "eval": "b.jsonl"}},
}

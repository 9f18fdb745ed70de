"""The JSON schema of a task file, by which editors complete and check it while it is written.

``python -m weightpager.compiler.task_file.schema > src/weightpager/cli/starter/tasks.schema.json`` writes the copy that
``weightpager init`` and ``weightpager schema`` give out, which must not need the compiler's libraries.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from weightpager.blocks import BlockShape
from weightpager.compiler.task_file.file import SECTIONS, TaskFile


def schema() -> dict[str, Any]:
    """What `load` accepts, as far as a schema can say it: whether files are there and fit together it can't."""
    document = TaskFile.model_json_schema(schema_generator=_Generator)
    definitions = document["$defs"]
    for section in SECTIONS.values():
        _describe(document if section is TaskFile else definitions[section.__name__], section)
    tasks, added = document["properties"]["tasks"], document["properties"].pop("added")
    tasks["additionalProperties"] = False
    for name, spec in added["patternProperties"].items():
        tasks["patternProperties"][name] = {"anyOf": [tasks["patternProperties"][name], spec]}
    return {"$schema": _Generator.schema_dialect, **document, "title": "weightpager task file"}


def text() -> str:
    """The content of the schema's file."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"


class _Generator(GenerateJsonSchema):
    """Values as a task file states them."""

    def encode_default(self, dft: Any) -> Any:
        """A block's shape as text, sections without what is the default anyway."""
        if isinstance(dft, BlockShape):
            return str(dft)
        return dft.model_dump(exclude_defaults=True) if isinstance(dft, BaseModel) else super().encode_default(dft)

    def get_title_from_name(self, name: str) -> str:
        """The key itself."""
        return name


def _describe(found: dict[str, Any], section: type[BaseModel]) -> None:
    """Give the section and its keys the words of its docstring."""
    text = inspect.getdoc(section) or ""  # from Python 3.13 on __doc__ is indented less
    found["description"] = _plain(text.split("\n", 1)[0])
    for key, words in _attributes(text).items():
        found["properties"][key]["description"] = words


def _attributes(docstring: str) -> dict[str, str]:
    """Key to words, of a docstring's attributes; ``a, b: words`` are the words of both."""
    section = docstring.partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return {key: _plain(words) for keys, words in entries for key in keys.split(", ")}


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


if __name__ == "__main__":
    sys.stdout.write(text())

"""``python -m docs.api_page > docs/api.md`` writes the page of Python's names, from signatures and docstrings.

Sources are read, not imported: neither torch nor compiled kernels are needed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import griffe

from docs.signatures import Signatures

SOURCES = Path(__file__).resolve().parents[1] / "src"

SECTIONS: Mapping[str, Sequence[str]] = {
    "Compile": ("weightpager.compile",),
    "Engine": ("weightpager.load", "weightpager.Engine", "weightpager.Models", "weightpager.PicturePrompt"),
    "What an engine gives": (
        "weightpager.Prediction",
        "weightpager.NativeTask",
        "weightpager.backends.native.KVCache",
        "weightpager.SwitchReport",
        "weightpager.EngineReport",
        "weightpager.engine.report.EngineFigures",
        "weightpager.runtime.memory.memory_budget.MemoryUse",
        "weightpager.engine.PrefetchReport",
        "weightpager.runtime.planning.pages.PrefetchCounts",
        "weightpager.engine.RowReport",
        "weightpager.runtime.memory.feature_cache.FeatureReport",
        "weightpager.runtime.memory.prefix_cache.PrefixReport",
        "weightpager.ResidencyMap",
        "weightpager.ForecastReport",
        "weightpager.BundleChange",
    ),
    "Configuration": ("weightpager.EngineConfig", "weightpager.Planner", "weightpager.Visit"),
    "Bundle": (
        "weightpager.Bundle",
        "weightpager.bundle.TaskEntry",
        "weightpager.bundle.DenseScore",
        "weightpager.bundle.EvalData",
        "weightpager.bundle.Generation",
        "weightpager.bundle.TaskKind",
    ),
}
"""Names as they are imported, in the order of the page."""

INSIDE: Sequence[str] = (
    "weightpager.compiler.task_file.file.TaskFile",
    "weightpager.progress.Progress",
    "weightpager.compiler.resume.journal.Workers",
    "weightpager.runtime.prediction.task_monitor.TaskMonitor",
    "weightpager.answers.model.TaskModel",
    "weightpager.answers.model.ModelLimits",
    "weightpager.answers.kept.Kept",
    "weightpager.answers.kept.Prefixes",
    "weightpager.answers.model.CacheSize",
    "weightpager.engine.input_readers.InputReaders",
    "weightpager.readers.tokenizer.Tokenizer",
    "weightpager.readers.image_reader.ImageReader",
    "weightpager.readers.picture.Picture",
    "weightpager.runtime.planning.block_manager.BlockManager",
    "weightpager.runtime.planning.shares.Holding",
    "weightpager.runtime.planning.shares.Wish",
    "weightpager.store.PageStore",
    "weightpager.runtime.memory.page_arena.ArenaSource",
    "weightpager.bundle.Manifest",
    "weightpager.bundle.WeightEntry",
    "weightpager.bundle.format.manifest.Pictures",
    "weightpager.bundle.files.entry.FileEntry",
    "weightpager.bundle.PageIndex",
    "weightpager.bundle.format.placement.Placement",
    "weightpager.bundle.BlockTable",
    "weightpager.bundle.format.low_rank.LowRankLayout",
    "weightpager.bundle.format.placement.Permutations",
    "weightpager.bundle.format.row_table.RowTable",
    "weightpager.bundle.format.row_table.RowTableEntry",
    "weightpager.bundle.format.whole_weight.WholeWeightEntry",
    "weightpager.graph.Graph",
    "weightpager.graph.graph.GraphInput",
    "weightpager.graph.graph.GraphOutput",
)
"""Names of the section that says less of each."""

_HEAD = """# From Python

Made by `python -m docs.api_page > docs/api.md`, from signatures and docstrings.

```python
import weightpager as wp

bundle = wp.compile("tasks.yaml", out="assistant.bundle")
with wp.load("assistant.bundle", budget="4MiB") as engine:
    print(engine.predict("spam", ["You won a prize"])[0].label)
```

Names load when they are first used: a device that runs bundles imports neither the compiler nor torch. Names in
`weightpager` itself, and [errors](#errors), keep [what a version promises](../CONTRIBUTING.md#versions). Names with
longer paths are here so that you know what you were given; any version may change them.
"""

_INSIDE = """## Inside

What else these take and give, in brief. Most programs need none of it; [the architecture](architecture.md) says what it
is for.
"""

_GROUPS: Mapping[str, Mapping[str, str]] = {
    "Engine": {
        "__init__": "Open, run, close",
        "pin": "Change memory, pages and the bundle",
        "bundle": "Look on; loads nothing",
    }
}
"""What the methods of a large class are for, by the first one of each group in the order of the source."""

_SPECIAL = {"Engine": ("__init__",), "NativeTask": ("__call__",)}
"""Methods without a name of their own that users call."""

_ERRORS = """## Errors

All in `weightpager` itself and in `weightpager.errors`. The text of an error says what was expected, what was found and
what to do. Any other exception that no entry of this page names is a bug of ours.

```pycon
>>> try:
...     engine.predict("spma", ["You won a prize"])
... except wp.UnknownTaskError as error:
...     print(error)
unknown task 'spma'; the bundle has: spam, topic. Did you mean 'spam'?
```
"""

_TITLES: Mapping[type[griffe.DocstringSection], str] = {
    griffe.DocstringSectionParameters: "Arguments",
    griffe.DocstringSectionAttributes: "Attributes",
    griffe.DocstringSectionRaises: "Raises",
    griffe.DocstringSectionReturns: "Returns",
}
"""What a section of a docstring is called."""


def page() -> str:
    """The page, as Markdown."""
    loaded = griffe.GriffeLoader(search_paths=[SOURCES], allow_inspection=False).load("weightpager")
    assert isinstance(loaded, griffe.Module)
    return _Page(loaded).text()


_Member = griffe.Function | griffe.Attribute


class _Page:
    """Entries by the names that people import, and what links to them."""

    def __init__(self, package: griffe.Module) -> None:
        paths = [*chain(*SECTIONS.values()), *INSIDE]
        self._paths = {path.rpartition(".")[2]: path for path in paths}
        self._signatures = Signatures(package, self._paths)
        self._anchors = {name: _anchor(path) for name, path in self._paths.items()}
        for name in [name for name, path in self._paths.items() if path not in INSIDE]:
            members = (f"{name}.{member.name}" for member in self._members(name))
            self._anchors |= {member: _anchor(member) for member in members}

    def text(self) -> str:
        parts = [_HEAD, self._contents()]
        for title, paths in SECTIONS.items():
            parts += [f"## {title}\n", *(self._entry(path, brief=False) for path in paths)]
        parts += [self._errors(), _INSIDE, *(self._entry(path, brief=True) for path in INSIDE)]
        return "\n".join(parts).rstrip() + "\n"

    def _contents(self) -> str:
        lines = [
            f"* [{title}](#{_anchor(title)}): {', '.join(self._link(path.rpartition('.')[2]) for path in paths)}"
            for title, paths in SECTIONS.items()
        ]
        return "\n".join([*lines, "* [Errors](#errors)", "* [Inside](#inside): what else these take and give", ""])

    def _entry(self, path: str, *, brief: bool) -> str:
        name, item = path.rpartition(".")[2], self._signatures.find(path)
        parts = [f"### `{path}`\n"]
        if isinstance(item, griffe.Function):
            parts += self._function(path, item)
        elif isinstance(item, griffe.Attribute):
            parts += self._alias(item)
        else:
            parts += [*self._docstring(item, name), *self._undescribed(item)]
            parts += self._brief_members(name) if brief else self._full_members(name)
        return "\n".join(parts)

    def _members(self, name: str) -> Iterator[_Member]:
        """Public methods and properties of a class, in the order of the source."""
        found = self._signatures.find(self._paths[name])
        if not isinstance(found, griffe.Class):
            return
        for key, item in found.members.items():
            shown = not key.startswith("_") or key in _SPECIAL.get(name, ())
            if shown and isinstance(item, (griffe.Function, griffe.Attribute)) and _is_method(item):
                yield item

    def _full_members(self, name: str) -> list[str]:
        members = list(self._members(name))
        parts = [self._index(name, members)] if name in _GROUPS else []
        for member in members:
            called = f"{name}.{member.name}"
            parts.append(f"#### `{called}`\n")
            if isinstance(member, griffe.Function):
                parts += self._function(called.removesuffix(".__init__").removesuffix(".__call__"), member, name)
            else:
                hint = member.annotation
                code = f"{called}: {self._signatures.type(hint)}"
                parts += [_code(code), *self._docstring(member, name), *self._types([hint], name)]
        return parts

    def _brief_members(self, name: str) -> list[str]:
        """A line for each member but for those that make or check a value."""
        lines = [
            f"* `{self._signatures.member(item)}`" + (f": {self._linked(_summary(item), name)}" if _text(item) else "")
            for item in self._members(name)
            if not item.labels & {"classmethod", "staticmethod"}
        ]
        return ["**Methods and properties**\n", *lines, ""] if lines else []

    def _index(self, name: str, members: Sequence[_Member]) -> str:
        """Links to the members of a class, by group."""
        rows = ["| | |", "|---|---|"]
        for member in members:
            link = f"[`{member.name}`](#{self._anchors[f'{name}.{member.name}']})"
            title = _GROUPS[name].get(member.name)
            if title is None:
                rows[-1] = f"{rows[-1].removesuffix(' |')} · {link} |"
            else:
                rows.append(f"| {title} | {link} |")
        return "\n".join([*rows, ""])

    def _function(self, called: str, item: griffe.Function, owner: str = "") -> list[str]:
        hints = [*(each.annotation for each in item.parameters), item.returns]
        return [_code(self._signatures.of(called, item)), *self._docstring(item, owner), *self._types(hints, owner)]

    def _alias(self, item: griffe.Attribute) -> list[str]:
        code = [] if "_native" in str(item.value) else [_code(self._signatures.alias(item))]
        return [*code, *self._docstring(item, ""), *self._types([item.value], item.name)]

    def _types(self, hints: Sequence[Any], owner: str) -> list[str]:
        """Links to the entries that a signature names."""
        names = dict.fromkeys(name for hint in hints for name in self._signatures.entries_in(hint) if name != owner)
        return [f"Types: {', '.join(map(self._link, names))}.\n"] if names else []

    def _docstring(self, item: griffe.Object, owner: str) -> list[str]:
        found = []
        for section in [] if item.docstring is None else item.docstring.parse("google"):
            if isinstance(section, griffe.DocstringSectionText):
                found.append(f"{self._linked(section.value, owner)}\n")
            elif isinstance(section, griffe.DocstringSectionExamples):
                found.append("\n".join(["```pycon", *(text for _, text in section.value), "```\n"]))
            else:
                rows = (self._row(each, item, owner) for each in section.value)
                found += [f"**{_TITLES[type(section)]}**\n", "\n".join(rows) + "\n"]
        return found

    def _row(self, each: Any, item: griffe.Object, owner: str) -> str:
        text = self._linked(" ".join(each.description.split()), owner)
        if isinstance(each, griffe.DocstringReturn):
            return text
        if isinstance(each, griffe.DocstringRaise):
            return f"* {', '.join(f'`{name}`' for name in re.findall(r'[A-Za-z]+', str(each.annotation)))}: {text}"
        if not each.name.lstrip("*").isidentifier():
            raise ValueError(f"{item.path}: expected one name before the colon, found {each.name!r}")
        hint = item.members[each.name].annotation if each.name in item.members else None  # type: ignore[union-attr]
        shown = f" (`{self._signatures.type(hint)}`)" if hint and isinstance(each, griffe.DocstringAttribute) else ""
        return f"* `{each.name}`{shown}: {text}"

    def _undescribed(self, item: griffe.Object) -> list[str]:
        """Fields of a class whose docstring describes none."""
        fields = [
            each
            for key, each in item.members.items()
            if isinstance(each, griffe.Attribute) and each.annotation and not key.startswith("_")
        ]
        if "Attributes:" in _text(item) or not (fields := [each for each in fields if not _is_method(each)]):
            return []
        return ["**Attributes**\n", *(f"* `{self._signatures.member(each)}`" for each in fields), ""]

    def _errors(self) -> str:
        """The tree of errors, with what each means."""
        below: dict[str, list[griffe.Object]] = {}
        for each in self._signatures.find("weightpager.errors").members.values():
            if isinstance(each, griffe.Class) and not each.name.startswith("_"):
                below.setdefault(str(each.bases[0]), []).append(each)

        def lines(of: str, indent: str) -> Iterator[str]:
            for each in below.get(of, []):
                yield f"{indent}* `{each.name}`: {' '.join(_text(each).split())}"
                yield from lines(each.name, indent + "    ")

        return "\n".join([_ERRORS, *lines("Exception", ""), ""])

    def _link(self, name: str) -> str:
        return f"[`{name}`](#{self._anchors[name]})"

    def _linked(self, text: str, owner: str) -> str:
        """A docstring's text, with links where single backticks name something that has an entry."""

        def link(match: re.Match[str]) -> str:
            anchor = self._anchors.get(f"{owner}.{match[1]}") or self._anchors.get(match[1])
            return match[0] if anchor is None else f"[{match[0]}](#{anchor})"

        return re.sub(r"(?<!`)`([\w.]+)`(?!`)", link, text)


def _is_method(item: griffe.Function | griffe.Attribute) -> bool:
    """Whether it is computed, and not a field."""
    return isinstance(item, griffe.Function) or "property" in item.labels


def _text(item: griffe.Object) -> str:
    return "" if item.docstring is None else item.docstring.value


def _summary(item: griffe.Object) -> str:
    """The first paragraph of a docstring, in one line."""
    return " ".join(_text(item).split("\n\n")[0].split())


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub and MkDocs make it."""
    return re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")


if __name__ == "__main__":
    sys.stdout.write(page())

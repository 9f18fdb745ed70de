"""Signatures and types as the page of Python's names shows them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

import griffe

_WIDTH = 100
"""Columns of a signature; a longer one has a line for each parameter."""

_STARS = {griffe.ParameterKind.var_positional: "*", griffe.ParameterKind.var_keyword: "**"}


class Signatures:
    """Shows types and signatures: aliases that have no entry of their own are spelt out."""

    def __init__(self, package: griffe.Module, entries: Collection[str]) -> None:
        """Know the sources, and the short names of the page's entries."""
        self._package = package
        self._entries = entries

    def find(self, path: str) -> griffe.Object:
        """What a name of the package stands for."""
        found: griffe.Object | griffe.Alias = self._package[path.removeprefix("weightpager.")]
        return found.final_target if isinstance(found, griffe.Alias) else found

    def of(self, called: str, function: griffe.Function) -> str:
        """A function's signature, in one line or with a line for each parameter."""
        parts = list(self._parameters(function))
        gives = "" if function.name == "__init__" else f" -> {self._returned(function)}"
        line = f"{called}({', '.join(parts)}){gives}"
        if len(line) <= _WIDTH:
            return line
        return "\n".join([f"{called}(", *(f"    {part}," for part in parts), f"){gives}"])

    def member(self, item: griffe.Function | griffe.Attribute) -> str:
        """A member of a class, in one line."""
        if isinstance(item, griffe.Attribute):
            return f"{item.name}: {self.type(item.annotation)}"
        return f"{item.name}({', '.join(self._parameters(item))}) -> {self._returned(item)}"

    def alias(self, item: griffe.Attribute) -> str:
        """An alias of a type, in one line or with a line for each part."""
        line, value = f"{item.name} = {self.type(item.value)}", item.value
        if len(line) <= _WIDTH or not isinstance(value, griffe.ExprSubscript):
            return line
        assert isinstance(value.slice, griffe.ExprTuple)
        parts = (f"    {self.type(part)}," for part in value.slice.elements)
        return "\n".join([f"{item.name} = {value.left}[", *parts, "]"])

    def type(self, annotation: Any) -> str:
        """A type, without the bounds of its values."""
        return self._type(annotation).replace("'", '"')

    def entries_in(self, annotation: Any) -> Iterator[str]:
        """Short names of the entries that a type is made of."""
        if not isinstance(annotation, griffe.Expr):
            return
        for each in annotation.iterate():
            if isinstance(each, griffe.ExprName) and each.name in self._entries and _is_ours(each):
                yield each.name
            elif isinstance(each, griffe.ExprName):
                yield from self.entries_in(self._meaning(each))

    def _type(self, annotation: Any) -> str:
        if isinstance(annotation, griffe.ExprName):
            meaning = None if annotation.name in self._entries else self._meaning(annotation)
            return annotation.name if meaning is None else self._type(meaning)
        if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
            assert isinstance(annotation.slice, griffe.ExprTuple)
            return self._type(annotation.slice.elements[0])
        if isinstance(annotation, griffe.ExprSubscript):  # of a generic alias the name stays
            return f"{annotation.left}[{self._type(annotation.slice)}]"
        if isinstance(annotation, griffe.Expr) and not isinstance(annotation, griffe.ExprAttribute):
            return "".join(map(self._type, annotation.iterate(flat=False)))
        return str(annotation)

    def _meaning(self, name: griffe.ExprName) -> griffe.Expr | None:
        """What an alias of a type stands for; None of a class or a type variable."""
        found = self.find(name.canonical_path) if _is_ours(name) else None
        value = found.value if isinstance(found, griffe.Attribute) else None
        return value if isinstance(value, griffe.Expr) and not isinstance(value, griffe.ExprCall) else None

    def _parameters(self, function: griffe.Function) -> Iterator[str]:
        named_only = False
        for each in function.parameters:
            if each.name in ("self", "cls"):
                continue
            if each.kind is griffe.ParameterKind.keyword_only and not named_only:
                yield "*"
            named_only = named_only or each.kind not in (
                griffe.ParameterKind.positional_only,
                griffe.ParameterKind.positional_or_keyword,
            )
            yield self._parameter(each)

    def _parameter(self, each: griffe.Parameter) -> str:
        stars = "" if each.kind is None else _STARS.get(each.kind, "")
        default = "" if each.default is None or stars else f" = {each.default}".replace("'", '"')
        return f"{stars}{each.name}: {self.type(each.annotation)}{default}"

    def _returned(self, function: griffe.Function) -> str:
        found = self.type(function.returns)
        if any(str(each.value) in ("contextmanager", "bracket") for each in function.decorators):
            return re.sub(r"^Iterator", "AbstractContextManager", found)
        return found


def _is_ours(name: griffe.ExprName) -> bool:
    return name.canonical_path.startswith("weightpager.")

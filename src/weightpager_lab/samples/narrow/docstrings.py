"""Functions of Python's standard library without comments, to be described in the first line of a docstring."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator

from weightpager_lab.samples.items import Item, completed

_SHORTEST, _LONGEST = 15, 100  # characters of a description
_CODE = 500  # characters of a function


def read(modules: Iterable[Item]) -> Iterator[Item]:
    """The functions that aren't long; those of one module share its group. Modules that don't parse are left out."""
    for module in modules:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes
                tree = ast.parse(module.text)
        except (SyntaxError, ValueError):
            continue
        yield from _functions(tree, module.group)


def _functions(tree: ast.Module, group: str) -> Iterator[Item]:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        told = (ast.get_docstring(node) or "").split("\n")[0].strip()
        node.body = node.body[1:]
        if not node.body or not _SHORTEST <= len(told) <= _LONGEST:
            continue
        code = ast.unparse(node)
        if len(code) <= _CODE:
            yield completed(f"{code}\nDocstring:", told, group)

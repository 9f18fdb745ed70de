"""`View`: who makes and who uses the values of a draft; and rewriting node by node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from weightpager.compiler.graph.builder import Draft, Size, Type
from weightpager.graph import Node, Operand
from weightpager.graph.graph import Array


class View:
    """A draft as passes look at it. Constants may be added; nodes are replaced by `rewritten`."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.constants = list(draft.graph.constants)
        self.types = dict(draft.types)
        self.makers = {name: node for node in draft.graph.nodes for name in node.outputs}
        self.users: defaultdict[Operand, list[Node]] = defaultdict(list)
        for node in draft.graph.nodes:
            for operand in filter(None, node.inputs):
                self.users[operand].append(node)
        self.results = {each.value for each in draft.graph.outputs}

    def maker(self, operand: Operand | None, *ops: str) -> Node | None:
        """The node that makes a value, if its operator is one of these; any if none are named."""
        if operand is None or operand.kind != "value":
            return None
        node = self.makers[str(operand.key)]
        return node if not ops or node.op in ops else None

    def used_once(self, node: Node) -> bool:
        """Whether a node's only value has one use, and is no result of the graph."""
        return len(self.users[Operand.value(node.output)]) == 1 and node.output not in self.results

    def shape(self, operand: Operand | None) -> tuple[Size, ...]:
        """Sizes of an operand's axes."""
        assert operand is not None
        return self.types[operand].shape

    def value_of(self, operand: Operand | None) -> Array | None:
        """A constant's values."""
        if operand is None or operand.kind != "constant":
            return None
        return self.constants[int(operand.key)]

    def constant(self, array: Array) -> Operand:
        """A new constant."""
        self.constants.append(array)
        operand = Operand.constant(len(self.constants) - 1)
        self.types[operand] = Type(tuple(array.shape), str(array.dtype))
        return operand

    def finished(self, nodes: Sequence[Node]) -> Draft:
        """The draft with other nodes, and the constants that were added."""
        graph = replace(self.draft.graph, nodes=tuple(nodes), constants=tuple(self.constants))
        return Draft(graph, self.types)


Rule = Callable[[View, Node], "Node | Operand | None"]
"""What a node becomes: another node of the same outputs, a value that it equals, or itself (None)."""


def rewritten(draft: Draft, rule: Rule) -> Draft:
    """Every node replaced as a rule says, in order; what nobody uses any more stays until `without_unused`."""
    view = View(draft)
    nodes: list[Node] = []
    equal: dict[Operand, Operand] = {}
    for old in draft.graph.nodes:
        node = replace(old, inputs=tuple(None if each is None else equal.get(each, each) for each in old.inputs))
        replacement = rule(view, node)
        if isinstance(replacement, Operand):
            if old.output not in view.results:
                equal[Operand.value(old.output)] = replacement
                continue
            replacement = None
        made = node if replacement is None else replacement
        nodes.append(made)
        view.makers.update(dict.fromkeys(made.outputs, made))
    return view.finished(nodes)


def operand_pairs(node: Node) -> tuple[tuple[Operand | None, Operand | None], ...]:
    """The two operands of a node that may change places, in both orders."""
    x, y = node.inputs
    return ((x, y), (y, x))


def scalar_of(view: View, node: Node) -> Any:
    """The number that a node of two operands has as its second one, as an attribute or as a constant; None if none."""
    if node.attributes["scalar"] is not None:
        return node.attributes["scalar"]
    values = view.value_of(node.inputs[1])
    return values.item() if values is not None and np.size(values) == 1 else None

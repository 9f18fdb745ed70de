"""A task's forward pass as a graph of few operators: its file, and a plain numpy reference. No torch, no threads.

``docs/graph-format.md`` is its specification.
"""

from weightpager.graph.file import read_graph, write_graph
from weightpager.graph.graph import Graph, GraphInput, GraphOutput, Node, Operand

__all__ = ["Graph", "GraphInput", "GraphOutput", "Node", "Operand", "read_graph", "write_graph"]

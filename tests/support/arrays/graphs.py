"""Small graphs, made by hand."""

from __future__ import annotations

import numpy as np

from weightpager.graph import Graph, GraphInput, GraphOutput, Node, Operand

TEXT_INPUTS = (
    GraphInput("input_ids", "int64", ("batch", "length")),
    GraphInput("attention_mask", "int64", ("batch", "length")),
)


def classifier(features: int = 8, heads: int = 2) -> Graph:
    """Embedding, one causal attention over its own rows, a norm, the first token's head."""
    width = features // heads
    value, parameter = Operand.value, Operand.parameter
    heads_apart = {"shape": ["batch", "length", heads, width]}
    attention = {"scale": width**-0.5, "causal": True, "window": 0, "softcap": 0.0, "index": 0, "layout": "bthd"}
    norm = {"epsilon": 1e-5}
    return Graph(
        "text-classification",
        ("batch", "length"),
        TEXT_INPUTS,
        (
            Node("embedding", (parameter("base_model.table.weight"), Operand.input("input_ids")), {}, ("v0",)),
            Node("reshape", (value("v0"),), heads_apart, ("v1",)),
            Node("attention", (*[value("v1")] * 3, Operand.input("attention_mask")), attention, ("v2",)),
            Node("reshape", (value("v2"),), {"shape": ["batch", "length", features]}, ("v3",)),
            Node("add_layer_norm", (value("v0"), value("v3"), parameter("norm.weight"), None), norm, ("v4", "v5")),
            Node("multiply", (value("v5"), Operand.constant(0)), {"scalar": None}, ("v6",)),
            Node("slice", (value("v6"),), {"axis": 1, "start": 0, "end": 1, "step": 1}, ("v7",)),
            Node("reshape", (value("v7"),), {"shape": ["batch", features]}, ("v8",)),
            Node("linear", (value("v8"), parameter("head.weight"), None), {"activation": "none"}, ("v9",)),
        ),
        (GraphOutput("logits", "v9"),),
        (np.linspace(0, 1, features, dtype=np.float32),),
    )

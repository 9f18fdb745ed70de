from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from graphs import classifier
from weightpager.graph import GraphOutput
from weightpager.graph.graph import split
from weightpager.graph.reference import run


def test_both_parts_together_give_what_the_whole_gives() -> None:
    features = 8
    graph = classifier(features)
    graph = replace(graph, outputs=(*graph.outputs, GraphOutput("hidden", "v6")))
    rng = np.random.default_rng(0)
    shapes = {"base_model.table.weight": (9, features), "norm.weight": (features,), "head.weight": (3, features)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    inputs = {"input_ids": rng.integers(0, 9, (2, 5)), "attention_mask": np.ones((2, 5), np.int64)}
    below, head = split(graph, "hidden", features)
    hidden = run(below, values, inputs)
    assert list(hidden) == ["hidden"]
    assert [node.op for node in head.nodes] == ["slice", "reshape", "linear"]
    whole = run(graph, values, inputs)
    assert np.array_equal(hidden["hidden"], whole["hidden"])
    assert np.array_equal(run(head, values, hidden)["logits"], whole["logits"])


def test_a_head_has_no_dimension_of_what_stands_in_texts() -> None:
    graph = replace(
        classifier(),
        dims=("batch", "length", "features"),
        outputs=(GraphOutput("logits", "v9"), GraphOutput("hidden", "v6")),
    )
    below, head = split(graph, "hidden", 8)
    assert (below.dims, head.dims) == (graph.dims, ("batch", "length"))
    assert head.inputs[0].shape == ("batch", "length", 8)


def test_what_needs_more_than_the_output_is_named() -> None:
    graph = classifier()
    with pytest.raises(ValueError, match=r"output 'hidden', found \['logits'\]"):
        split(graph, "hidden", 8)
    twice = replace(graph, outputs=(*graph.outputs, GraphOutput("hidden", "v9")))
    with pytest.raises(ValueError, match="the value of 'hidden' as no other output, found it as 'logits'"):
        split(twice, "hidden", 8)
    early = replace(graph, outputs=(*graph.outputs, GraphOutput("hidden", "v3")))
    with pytest.raises(ValueError, match="need input_ids"):
        split(early, "hidden", 8)

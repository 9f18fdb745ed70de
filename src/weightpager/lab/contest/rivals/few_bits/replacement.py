"""Putting layers in few bits into a task's module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.backends.torch.model.architecture import full_name
from weightpager.lab.contest.rivals.few_bits.layers import Int4Linear, Int8Embedding, Int8Linear

SCALE = ".scale"
"""Follows the name of a layer in few bits: its scales, bfloat16."""


def put_into(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Replace, in place, the layers whose values are in few bits; a head that is tied to a table is one of them."""
    names = [name.removesuffix(SCALE) for name in values if name.endswith(SCALE)]
    parts, head = dict(module.named_modules()), _tied_head(module) if names else None
    for name in names:
        weight, scale, bias = values[f"{name}.weight"], values[name + SCALE], values.get(f"{name}.bias")
        full = full_name(module, name)
        if full not in parts:  # some tasks lack a pooler that others have
            continue
        if not hasattr(parts[full], "num_embeddings"):
            layer = Int4Linear if weight.dtype == torch.uint8 else Int8Linear
            module.set_submodule(full, layer(weight, scale, bias))
            continue
        module.set_submodule(full, Int8Embedding(weight, scale))
        if head is not None and len(weight) == parts[head].out_features:
            module.set_submodule(head, Int8Linear(weight, scale, None))


def _tied_head(module: nn.Module) -> str | None:
    """The name of a head that is the table of the words, which it no longer says of itself; None without one."""
    config: Any = getattr(module, "config", None)
    outputs = getattr(module, "get_output_embeddings", lambda: None)()
    if outputs is None or not getattr(config, "tie_word_embeddings", False):
        return None
    config.tie_word_embeddings = False  # or transformers would tie them anew
    return next((name for name, part in module.named_modules() if part is outputs), None)

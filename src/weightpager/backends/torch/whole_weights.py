"""Putting a whole weight into a task's module: for each linear layer, and each embedding, that has it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightpager.errors import BundleFormatError
from weightpager.kernels.torch import Weight
from weightpager.nn import WholeEmbedding, WholeLinear, is_linear, is_plain_embedding


def put_whole(module: nn.Module, name: str, weight: Weight, dtype: torch.dtype) -> None:
    """Replace, in place, all layers that share a parameter; a module that lacks it stays as it is.

    Args:
        module: whose parameters have no values yet.
        name: of the parameter, as the module calls it.
        weight: its values.
        dtype: that the module computes in.

    Raises:
        BundleFormatError: the parameter is of another shape, or used in another way than by lookup and product.
    """
    try:
        old = module.get_parameter(name)
    except AttributeError:
        return
    shape = (weight.out_features, weight.in_features)
    if tuple(old.shape) != shape:
        raise BundleFormatError("manifest.json", f"whole_weights.{name}", f"{tuple(old.shape)}", f"{shape}")
    made: dict[int, nn.Module] = {}
    for path, part in list(module.named_modules(remove_duplicate=False)):
        if any(tensor is old for tensor in part._parameters.values()):
            if id(part) not in made:
                made[id(part)] = _over(weight, part, name, dtype)
            module.set_submodule(path, made[id(part)])


def without_ties(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values under every name that a module has for a parameter, so that nothing has to be tied afterwards.

    Args:
        wanted: the module's parameters and buffers, by all their names.
        state: values, each under one of its names at least.
    """
    values = {id(wanted[name]): value for name, value in state.items() if name in wanted}
    return {name: values[id(tensor)] for name, tensor in wanted.items() if id(tensor) in values}


def _over(weight: Weight, part: nn.Module, name: str, dtype: torch.dtype) -> nn.Module:
    if is_plain_embedding(part):
        return WholeEmbedding(weight, dtype, part.padding_idx)
    if not is_linear(part):
        wanted = "a weight that only embeddings and linear layers of the architecture use"
        raise BundleFormatError("manifest.json", f"whole_weights.{name}", wanted, part)
    layer = WholeLinear(weight, None, dtype)
    layer.bias = part.bias  # which has its value with all others
    return layer

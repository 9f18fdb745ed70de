"""Linear layers of a module that multiply otherwise than by their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

_MANY = (list, tuple)


class Product(Protocol):
    """What a linear layer multiplies by in place of its weight."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's outputs, [..., out_features]."""

    def weight(self) -> Tensor:
        """The same as a weight [out_features, in_features], for whatever asks for that."""


class Multiplying(TorchFunctionMode):
    """Linear layers multiply by products while this is entered; whatever else uses such a weight gets the product's."""

    def __init__(self, products: Mapping[int, Product]) -> None:
        """State the products, by the `id` of the parameters that they stand for."""
        super().__init__()
        self._products = products

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is linear and len(args) > 1 and (product := self._products.get(id(args[1]))):
            bias = args[2] if len(args) > 2 else given.get("bias")
            return product.linear(args[0].bfloat16() if torch.is_autocast_enabled("cpu") else args[0], bias)
        result = func(*args, **given)
        if not self._uses((*args, *given.values())) or not _has_tensors(result):
            return result
        return func(*self._replaced(args), **{name: self._replaced(value) for name, value in given.items()})

    def _uses(self, value: Any) -> bool:
        """Whether a weight that a product stands for is, or is among, what a function was given."""
        return any(map(self._uses, value)) if type(value) in _MANY else id(value) in self._products

    def _replaced(self, value: Any) -> Any:
        if type(value) in _MANY:
            return type(value)(map(self._replaced, value))
        product = self._products.get(id(value))
        return value if product is None else product.weight()


def _has_tensors(result: Any) -> bool:
    """Whether a function gave something that depends on values, and not a shape or a flag."""
    return any(map(_has_tensors, result)) if type(result) in _MANY else isinstance(result, Tensor)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer multiplies as a product can do it in its place."""
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        return False
    return layer.weight.dtype == torch.float32 and layer.weight.is_contiguous()

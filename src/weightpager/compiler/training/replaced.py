"""A module with some of its parameters replaced, called, or for a while as a module."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Replaced:
    """A module that computes with other values.

    Attributes:
        module: the module as it is.
        weights: other values, by the names of its parameters and buffers; of the same shape and dtype.
    """

    module: nn.Module
    weights: Mapping[str, Tensor]

    def __call__(self, **inputs: Tensor) -> Any:
        """What the module gives with these values."""
        return functional_call(self.module, dict(self.weights), kwargs=inputs)

    @contextmanager
    def as_module(self) -> Iterator[nn.Module]:
        """The module with these values in it; nobody else may use it meanwhile. Its own are back afterwards."""
        named = dict([*self.module.named_parameters(), *self.module.named_buffers()])
        replaced = {name: named[name] for name in self.weights}
        before = {name: tensor.data for name, tensor in replaced.items()}
        try:
            for name, tensor in replaced.items():
                tensor.data = self.weights[name].detach()
            yield self.module
        finally:
            for name, tensor in replaced.items():
                tensor.data = before[name]

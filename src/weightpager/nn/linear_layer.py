"""Which modules are linear layers, and how their weights lie."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from weightpager.nn.experts import cut_apart, put_together

_COMPUTE_THE_SAME = frozenset({"FalconLinear"})
"""Subclasses of transformers whose own forward is ``x Wᵀ + bias`` and nothing else."""

_READ_OTHERWISE = NonDynamicallyQuantizableLinear  # whose weight `torch.nn.MultiheadAttention` reads past its forward


def is_linear(module: object) -> TypeGuard[nn.Linear]:
    """Whether a module computes ``x Wᵀ + bias`` with a ``weight`` [out, in] that nobody reads past its forward."""
    kind = type(module)
    same = getattr(kind, "forward", None) is nn.Linear.forward
    return (
        isinstance(module, nn.Linear)
        and not isinstance(module, _READ_OTHERWISE)
        and (same or kind.__name__ in _COMPUTE_THE_SAME)
    )


class UprightLinear(nn.Linear):
    """transformers' `Conv1D`, a linear layer that holds its weight as [in, out], with the weight as [out, in].

    Args:
        layer: whose values are taken over; its bias is shared.
    """

    def __init__(self, layer: Conv1D) -> None:
        super().__init__(layer.nx, layer.nf, device="meta")
        self.weight = _turned(layer.weight)
        self.bias = layer.bias

    def published(self) -> Conv1D:
        """The layer as transformers has it."""
        layer = Conv1D.__new__(Conv1D)
        nn.Module.__init__(layer)
        layer.nx, layer.nf = self.in_features, self.out_features
        layer.weight, layer.bias = _turned(self.weight), self.bias
        return layer


def set_upright(model: nn.Module, most_experts: int | None = None) -> None:
    """Have every linear layer of a model, in place, hold its weight as [out, in]; what it computes stays the same.

    Experts in one tensor become linear layers, too.

    Args:
        model: of transformers.
        most_experts: that there may be in all; None for any number.

    Raises:
        ValueError: there are more experts.
    """
    cut_apart(model, most_experts)
    for name, module in [*model.named_modules()]:
        if type(module) is Conv1D:
            model.set_submodule(name, UprightLinear(module))


def set_as_published(model: nn.Module) -> None:
    """Undo `set_upright`, in place: the model is saved as transformers loads it."""
    put_together(model)
    for name, module in [*model.named_modules()]:
        if isinstance(module, UprightLinear):
            model.set_submodule(name, module.published())


def _turned(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().T.contiguous(), requires_grad=weight.requires_grad)

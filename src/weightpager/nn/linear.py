"""`PagedLinear`: the linear layer of a weight that lies in pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import linear

from weightpager.errors import InferenceOnlyError
from weightpager.kernels.paged_weight import PageGate
from weightpager.kernels.torch import Weight, paged_linear
from weightpager.nn import custom_op


def refuse_gradients(x: Tensor) -> None:
    """Say at once that paged weights don't train. Raises `InferenceOnlyError` of a gradient, or one carried forward."""
    if x.requires_grad and torch.is_grad_enabled():
        raise InferenceOnlyError(
            "paged weights are for inference, and the input of a paged layer requires a gradient: run the task inside "
            "'with torch.inference_mode():', or train the checkpoint and compile it again"
        )
    if torch.compiler.is_compiling():
        return  # what follows can't be compiled
    if forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call] # else it would be lost silently
        raise InferenceOnlyError(
            "paged weights are for inference, and the input of a paged layer carries a forward-mode derivative "
            "(torch.func.jvp, jacfwd or torch.autograd.forward_ad): export the task with 'weightpager export' and "
            "differentiate that model"
        )


@dataclass(frozen=True, eq=False)
class LowRankPart:
    """What is added to a paged weight, ``up @ down``, in pages of the weight's layer and earlier ones.

    Attributes:
        down: A [rank, in_features].
        up: B [out_features, rank].
    """

    down: Weight
    up: Weight


class PagedLinear(custom_op.CustomOpLayer):
    """``y = x Wᵀ + bias`` with W one task's blocks, read in place, plus ``(x Aᵀ) Bᵀ`` where it has a low-rank part.

    Holds no weight of its own: the block table is immutable, the page table says where the pages are now. Inference
    only. `torch.compile` and `torch.export` see one operation, ``weightpager::paged_linear``.

    Args:
        weight: arena, page table and this task's block table of one paged weight.
        bias: [out_features] or None.
        layer: index of the model layer, for the gate.
        gate: of the task.
        low_rank: A [rank, in_features] and B [out_features, rank]; or None.
    """

    def __init__(
        self,
        weight: Weight,
        bias: Tensor | None,
        layer: int,
        gate: PageGate,
        low_rank: LowRankPart | None = None,
    ) -> None:
        super().__init__()
        self.in_features = weight.in_features
        self.out_features = weight.out_features
        self.paged_weight = weight
        self.layer = layer
        self.gate = gate
        self.low_rank = low_rank
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``, in x's dtype.

        Raises:
            InferenceOnlyError: a gradient, or a derivative forward, would have to flow through.
            TaskNotActiveError: the task isn't active, so its pages may be absent.
        """
        refuse_gradients(x)
        if custom_op.is_tracing():
            y: Tensor = custom_op.paged_linear(x, self._number, self.out_features)
            return y
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        reader = object()
        try:
            self.gate.enter(reader, self.layer)
            y = paged_linear(x, self.paged_weight, self.bias)
            if self.low_rank is not None:
                y = y + paged_linear(paged_linear(x, self.low_rank.down), self.low_rank.up)
            self.gate.note_read()
            return y
        finally:
            self.gate.leave(reader)

    def extra_repr(self) -> str:
        rows, columns = self.paged_weight.grid
        density = self.paged_weight.kept / (rows * columns)
        return f"in_features={self.in_features}, out_features={self.out_features}, density={density:.2f}"


class DroppedLinear(nn.Module):
    """In place of a linear layer that a task does without: it gives zeros."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Tensor:
        """Zeros ``[..., out_features]`` for ``[..., in_features]``, in x's dtype."""
        return x.new_zeros(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, dropped"


class FlatLinear(nn.Linear):
    """`torch.nn.Linear`, applied to rows.

    After a prompt transformers gives the head a slice, the last token's hidden state. By its strides torch takes that
    for a batch of matrices, and copies the whole weight for it: half a second for 150,000 tokens of 896 features.
    """

    @classmethod
    def of(cls, layer: nn.Linear) -> FlatLinear:
        """The same layer: its parameters are shared."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        return made

    def forward(self, x: Tensor) -> Tensor:
        rows = linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return rows.view(*x.shape[:-1], self.out_features)

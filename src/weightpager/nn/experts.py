"""Mixtures of experts: each expert as a gated feed-forward part of linear layers, and a router that can pass some over.

Since transformers 5 the experts of a layer are two tensors, ``gate_up_proj`` [experts, 2 · neurons, width] and
``down_proj`` [experts, width, neurons]. Cut apart they are linear layers like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from transformers.pytorch_utils import Conv1D

from weightpager.kernels.torch import paged_gated
from weightpager.nn import custom_op
from weightpager.nn.linear import PagedLinear, refuse_gradients

FAMILIES = ("Mixtral", "Olmoe", "Qwen2Moe", "Qwen3Moe")
"""Of transformers, by what the names of their classes begin with: those whose experts and routers are known."""

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
"""An expert's linear layers."""


class ExpertMLP(nn.Module):
    """``down_proj(act_fn(gate_proj(x)) * up_proj(x))``: one expert.

    Args:
        gate: [neurons, width].
        up: of the same shape.
        down: [width, neurons].
        act_fn: the activation.
    """

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, act_fn: nn.Module) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = map(_linear, (gate, up, down))
        self.act_fn = act_fn

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return found


class Experts(nn.ModuleList):
    """A layer's experts, one module each, called as transformers calls theirs.

    Args:
        fused: the module of transformers whose values are taken over, without a copy.
    """

    def __init__(self, fused: Any) -> None:
        gates, ups = fused.gate_up_proj.detach().chunk(2, dim=1)
        downs = fused.down_proj.detach()
        super().__init__(map(ExpertMLP, gates, ups, downs, [fused.act_fn] * len(downs)))
        self.requires_grad_(fused.down_proj.requires_grad)
        self._shell = (_without_values(fused),)  # in a tuple, so that it is no part of this module

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """The chosen experts' answers, weighted and summed.

        Args:
            hidden: [tokens, width].
            chosen: [tokens, experts a token], as a router gives them.
            weights: of the same shape.

        Returns:
            [tokens, width], in the dtype of ``hidden``.
        """
        total = torch.zeros_like(hidden)
        for _, tokens, answer in self.answers(hidden, chosen, weights):
            total.index_add_(0, tokens, answer.to(total.dtype))
        return total

    def answers(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """What each expert that is chosen adds: its number, the tokens it is chosen for, and to each [width]."""
        for number in torch.unique(chosen).tolist():  # ascending: sums have one order
            tokens, place = torch.where(chosen == number)
            yield number, tokens, self[number](hidden[tokens]) * weights[tokens, place, None]

    def published(self) -> nn.Module:
        fused: nn.Module = copy.copy(self._shell[0])
        fused._parameters = dict(fused._parameters)
        experts: list[Any] = list(self)
        gate_up = torch.stack([torch.cat([each.gate_proj.weight, each.up_proj.weight]) for each in experts])
        down = torch.stack([each.down_proj.weight for each in experts])
        fused.gate_up_proj, fused.down_proj = nn.Parameter(gate_up.detach()), nn.Parameter(down.detach())
        fused.requires_grad_(experts[0].down_proj.weight.requires_grad)
        return fused


class ExpertRouter(nn.Module):
    """Which experts a token goes to: those of the highest probability among those that may be chosen.

    Others have a logit of -inf before the softmax, so that the probabilities of those that are left add up to 1. Where
    fewer are left than a token usually goes to, it goes to all of them.

    Args:
        router: the module of transformers whose weight is shared.

    Attributes:
        kept: bool [experts], those that may be chosen; all, until something else is put here.
    """

    kept: Tensor

    def __init__(self, router: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = router.weight
        self.top_k = int(router.top_k)
        self._normalised = bool(getattr(router, "norm_topk_prob", True))  # Mixtral always does it
        self._in_float = not hasattr(router, "norm_topk_prob")
        self.register_buffer("kept", torch.ones(router.weight.shape[0], dtype=torch.bool), persistent=False)
        self._shell = (_without_values(router),)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [tokens, experts]; weights and numbers of the chosen ones, [tokens, experts a token].

        Args:
            hidden: [..., width].
        """
        logits = linear(hidden.reshape(-1, hidden.shape[-1]), self.weight)
        logits = logits.masked_fill(~self.kept, float("-inf"))
        chances = logits.softmax(-1, dtype=torch.float32)
        weights, chosen = chances.topk(min(self.top_k, int(self.kept.sum())), dim=-1)
        if self._normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights if self._in_float else weights.to(logits.dtype), chosen

    def published(self) -> nn.Module:
        router: nn.Module = copy.copy(self._shell[0])
        router._parameters = dict(router._parameters)
        router.weight = self.weight
        return router


@dataclass(frozen=True)
class Mixture:
    """A layer's experts in a model, with their router."""

    name: str
    router: ExpertRouter
    experts: Experts

    def weights(self, expert: int) -> list[str]:
        return [f"{self.name}.experts.{expert}.{projection}" for projection in PROJECTIONS]


def mixtures(model: nn.Module) -> list[Mixture]:
    """All of a model whose experts have been cut apart, in its order."""
    return [
        Mixture(name, module.gate, module.experts)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "experts", None), Experts) and isinstance(module.gate, ExpertRouter)
    ]


def cut_apart(model: Any, most: int | None = None) -> None:
    """Replace, in place, fused experts of the known families, and their routers; what is computed stays the same.

    Args:
        model: of transformers.
        most: experts that there may be in all; None for any number.

    Raises:
        ValueError: there are more.
    """
    found: list[Any] = [module for module in model.modules() if _is_known(module)]
    if most is not None and sum(len(block.experts.down_proj) for block in found) > most:
        raise ValueError("its configuration asks for far more experts than it has weights")
    if found and hasattr(model, "config"):
        model.config.output_router_logits = False  # of transformers' routers only, for a loss in training
    for block in found:
        block.gate, block.experts = ExpertRouter(block.gate), Experts(block.experts)


def put_together(model: nn.Module) -> None:
    """Undo `cut_apart`, in place."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, (Experts, ExpertRouter)):
            model.set_submodule(name, module.published())


def _is_known(module: Any) -> bool:
    name = type(module).__name__.removesuffix("SparseMoeBlock")
    parts = tuple(type(getattr(module, part, None)).__name__ for part in ("gate", "experts"))
    if name not in FAMILIES or parts != (f"{name}TopKRouter", f"{name}Experts"):
        return False
    fused = module.experts
    plain = fused.has_gate and fused.is_concatenated and not (fused.has_bias or fused.is_transposed)
    return plain and not getattr(fused, "has_post_expert_norm", False)


def _linear(weight: Tensor) -> nn.Linear:
    """A linear layer over a weight [out, in], which nothing is drawn for."""
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    layer.out_features, layer.in_features = weight.shape
    layer.weight = nn.Parameter(weight)
    layer.register_parameter("bias", None)
    return layer


def _without_values(module: nn.Module) -> Any:
    shell = copy.copy(module)
    shell._parameters = dict.fromkeys(module._parameters)
    return shell


_DENSE = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Granite", "Olmo", "SmolLM3")

_KNOWN = frozenset(f"{family}MLP" for family in (*_DENSE, *FAMILIES)) | {ExpertMLP.__name__}
"""Modules that compute ``down_proj(act_fn(gate_proj(x)) * up_proj(x))``, and nothing else."""

_ACTIVATIONS = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
}
"""What transformers calls an activation in one version or another → what the kernels call it."""


class PagedGatedMLP(custom_op.CustomOpLayer):
    """``down(act(gate(x)) * up(x))``; the product of the two projections is never in memory unmultiplied.

    Args:
        gate_proj: whose outputs go through the activation.
        up_proj: what they are multiplied with; of the same shape and blocks.
        down_proj: back to the model's width.
        activation: as `weightpager.kernels.torch.paged_gated` names it.
    """

    def __init__(self, gate_proj: PagedLinear, up_proj: PagedLinear, down_proj: PagedLinear, activation: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., in_features]``, in x's dtype. Errors are those of `PagedLinear`."""
        refuse_gradients(x)
        if custom_op.is_tracing():
            hidden: Tensor = custom_op.paged_linear(x, self._number, self.up_proj.out_features)
        else:
            hidden = self.compute(x)
        down: Tensor = self.down_proj(hidden)
        return down

    def compute(self, x: Tensor) -> Tensor:
        """Both projections, multiplied: ``[..., out_features]``."""
        gate, up = self.gate_proj, self.up_proj
        reader = object()
        try:
            up.gate.enter(reader, up.layer)
            y = paged_gated(x, gate.paged_weight, up.paged_weight, self.activation, (gate.bias, up.bias))
            up.gate.note_read()
            return y
        finally:
            up.gate.leave(reader)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


def fuse_gated_mlps(model: nn.Module) -> int:
    """Replace, in place, every gated feed-forward module whose three projections are paged; how many there were.

    Modules that aren't known to compute exactly this, and projections with low-rank parts, stay as they are.
    """
    layers = [(name, fused) for name, module in model.named_modules() if (fused := _fused(module)) is not None]
    for name, fused in layers:
        model.set_submodule(name, fused)
    return len(layers)


def _fused(module: nn.Module) -> PagedGatedMLP | None:
    activation = _ACTIVATIONS.get(type(getattr(module, "act_fn", None)).__name__)
    if type(module).__name__ not in _KNOWN or activation is None:
        return None
    gate, up, down = (getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj"))
    if not isinstance(gate, PagedLinear) or not isinstance(up, PagedLinear) or not isinstance(down, PagedLinear):
        return None
    if gate.low_rank is not None or up.low_rank is not None or gate.layer != up.layer:
        return None  # the first two would be left out, and pages of one layer only waited for
    return PagedGatedMLP(gate, up, down, activation)


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

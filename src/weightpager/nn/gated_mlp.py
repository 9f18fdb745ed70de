"""`PagedGatedMLP`: the feed-forward part of Llama-like decoders, gate and up projection in one pass over the input."""

from __future__ import annotations

from torch import Tensor, nn

from weightpager.kernels.torch import paged_gated
from weightpager.nn import custom_op
from weightpager.nn.experts import FAMILIES, ExpertMLP
from weightpager.nn.paged_linear import PagedLinear, refuse_gradients

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
        """``[..., in_features]`` to ``[..., in_features]``, in x's dtype.

        Raises:
            InferenceOnlyError, TaskNotActiveError: as `PagedLinear`.
        """
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
        """What it does between the projections."""
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

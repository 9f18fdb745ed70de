"""A model's parameters by names that don't depend on what its architecture calls its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from transformers import PreTrainedModel

from weightpager.backends.torch.model.architecture import BASE


def parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every parameter and persistent buffer by canonical name: ``base_model.…``, or the head's own name.

    A tied tensor is listed once, under its name in the base if it has one there.
    """
    prefix = model.base_model_prefix + "."
    named = {canonical(name, prefix): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    listed: set[int] = set()
    result: dict[str, Tensor] = {}
    for name in sorted(named, key=lambda name: not name.startswith(BASE)):
        if id(named[name]) not in listed:
            listed.add(id(named[name]))
            result[name] = named[name]
    return result


def canonical(name: str, prefix: str) -> str:
    """``prefix`` (the base's attribute and a dot) replaced by ``base_model.``."""
    return BASE + name[len(prefix) :] if name.startswith(prefix) else name


def replace_tensors(model: PreTrainedModel, swap: Mapping[int, Tensor]) -> None:
    """Put other tensors in the places of those whose `id` is in ``swap``; tied places get the same one."""
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            slots.update({key: swap[id(tensor)] for key, tensor in slots.items() if id(tensor) in swap})


@contextmanager
def requiring_gradients(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for ``weights`` only: autograd then skips the others'."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(weight) for weight in weights}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)

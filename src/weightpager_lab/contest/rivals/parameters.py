"""Parameters that aren't paged, as methods other than ours keep them: in the precision people ship."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from weightpager.backends.torch.architecture import BASE, empty_module, read_config
from weightpager.backends.torch.parameters import read_parameters, read_rows, widened
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.nn.embedding import is_plain_embedding
from weightpager_lab.contest.rivals.few_bits import SCALE, int8_rows

_FEW_BITS = ("int8", "int4")


def resident(bundle: Bundle, dtype: str | None = None) -> dict[str, Tensor]:
    """What tasks share, by canonical name: in bfloat16, but embedding tables in int8 beside weights in few bits.

    Args:
        bundle: whose parameters these are.
        dtype: of the paged weights beside them; None for the bundle's.
    """
    values = _shipped(bundle, RESIDENT) | {name: as_shipped(table) for name, table in read_rows(bundle).items()}
    for name in _tables(bundle) & values.keys() if (dtype or bundle.manifest.dtype) in _FEW_BITS else ():
        values[name], values[name.removesuffix(".weight") + SCALE] = int8_rows(values[name])
    return values


def private(bundle: Bundle, task: str) -> dict[str, Tensor]:
    """A task's own parameters, by canonical name."""
    return _shipped(bundle, private_file(task))


def fixed_bytes(bundle: Bundle, shared: Mapping[str, Tensor]) -> int:
    """Bytes of all parameters that aren't paged: of what tasks share, and of all tasks' own."""
    private_values = (value for task in bundle.tasks for value in private(bundle, task).values())
    return sum(value.nbytes for value in (*shared.values(), *private_values))


def wide(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with tables in few bits multiplied out."""
    widened = dict(values)
    for name in [name for name in values if name.endswith(SCALE)]:
        scale, weight = widened.pop(name), f"{name.removesuffix(SCALE)}.weight"
        widened[weight] = values[weight].to(scale.dtype).mul_(scale[:, None])
    return widened


def as_shipped(tensor: Tensor) -> Tensor:
    """In bfloat16, as checkpoints are shipped; numbers that aren't floating as they are."""
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _shipped(bundle: Bundle, file: str) -> dict[str, Tensor]:
    return {name: as_shipped(value) for name, value in widened(bundle, read_parameters(bundle, file)).items()}


def _tables(bundle: Bundle) -> set[str]:
    """Canonical names of the embedding tables that tasks share."""
    module = empty_module(read_config(bundle), next(iter(bundle.tasks.values())))
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    names = (f"{name}.weight" for name, part in module.named_modules() if is_plain_embedding(part))
    return {BASE + name.removeprefix(prefix) for name in names if name.startswith(prefix)}

"""Parameters as other tools keep them: in bfloat16, or in layers of few bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from weightpager.backends.torch.architecture import BASE, empty_module, full_name, read_config
from weightpager.backends.torch.parameters import read_parameters, read_rows, widened
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.nn.embedding import is_plain_embedding
from weightpager.page_dtype import ENCODINGS, best_scales

GROUP = 32
"""Neighbouring inputs of an int4 weight that share a scale: the smallest group of torch's product."""


_AT_ONCE = 4096
"""Rows that are rounded at a time: in float32 a whole embedding table takes four times what it does in int8."""


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in int8, and a scale for each row."""
    numbers, scales = zip(*map(_int8, torch.split(weight, _AT_ONCE)), strict=True)
    return torch.cat(numbers), torch.cat(scales)


def _int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    wide = rows.float()
    scales = (wide.abs().amax(1).clamp(min=1e-9) / 127).to(torch.bfloat16)
    return (wide / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scales


def int4_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in numbers from -8 to 7, and scales [rows, columns / GROUP], searched as those of int4 pages are."""
    groups = weight.float().reshape(len(weight), -1, GROUP)
    scales = torch.from_numpy(best_scales(groups.numpy(), ENCODINGS["int4"]).view("<i2")).view(torch.bfloat16)
    wide = scales.float()[:, :, None]
    numbers = (groups / torch.where(wide == 0, 1.0, wide)).round().clamp(-8, 7).to(torch.int8)
    return numbers.view(weight.shape), scales


_STEP = 32


class Int8Linear(nn.Linear):
    """``y = (x Wᵀ) · scale + bias`` with W in int8 and a scale for each output; x in bfloat16.

    A `torch.nn.Linear`, so that PEFT puts adapters beside it.

    Args:
        weight: int8 [out_features, in_features].
        scale: bfloat16 [out_features].
        bias: [out_features] or None.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        _set_up(self, weight, weight.shape[1], scale, bias)
        self.scale: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """``[..., in_features]`` to ``[..., out_features]``."""
        rows = input.reshape(-1, self.in_features)
        if self.in_features % _STEP or self.out_features % _STEP:  # torch's kernel reads past the end of such
            y = linear(rows, self.weight.to(rows.dtype)) * self.scale
        else:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        return _shaped(y, input, self.bias)


class Int4Linear(nn.Linear):
    """``y = x Wᵀ + bias`` with W in 4 bits and a scale for every group of inputs of an output; x in bfloat16.

    Args:
        weight: `pack_int4`'s, uint8 [out_features, in_features / 2].
        scale: `pack_int4`'s, bfloat16 [in_features / GROUP, out_features, 2].
        bias: [out_features] or None.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        _set_up(self, weight, 2 * weight.shape[1], scale, bias)
        self.scale: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """``[..., in_features]`` to ``[..., out_features]``."""
        rows = input.reshape(-1, self.in_features)
        return _shaped(
            torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.scale), input, self.bias
        )


class Int8Embedding(nn.Module):
    """An embedding whose table is in int8 with a scale for each row.

    Args:
        weight: int8 [num_embeddings, embedding_dim].
        scale: [num_embeddings], of the dtype that is looked up.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` to ``[..., embedding_dim]``."""
        return embedding(ids, self.weight).to(self.scale.dtype) * embedding(ids, self.scale[:, None])


def takes_int4(weight: Tensor) -> bool:
    """Whether torch's int4 product takes a weight of this shape; others stay in int8."""
    rows, cols = weight.shape
    return rows % 16 == 0 and cols % GROUP == 0


def pack_int4(numbers: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as this processor's int4 product takes it, and its scales with zero points, which are 0.

    Args:
        numbers: from -8 to 7, [out_features, in_features].
        scales: bfloat16 [out_features, in_features / GROUP].
    """
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.int() + 8, 1)
    return packed, torch.stack([scales, torch.zeros_like(scales)], -1).transpose(0, 1).contiguous()


def _set_up(layer: nn.Linear, weight: Tensor, in_features: int, scale: Tensor, bias: Tensor | None) -> None:
    has_bias = bias is not None
    nn.Linear.__init__(layer, in_features, len(weight), bias=has_bias, device="meta", dtype=torch.bfloat16)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    layer.register_buffer("scale", scale)


def _shaped(rows: Tensor, like: Tensor, bias: Tensor | None) -> Tensor:
    y = rows.view(*like.shape[:-1], -1)
    return y if bias is None else y + bias


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

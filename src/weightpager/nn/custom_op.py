"""What torch's graphs have of a paged layer: one opaque operation, a custom op, that knows its layer by number.

The arena, the page table and the gate stay out of graphs: a switch of tasks changes them, and a graph that held them
would either be wrong or be compiled again. An exported program therefore runs only in the process that exported it.
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import count
from secrets import randbits
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from weightpager.errors import EngineClosedError

# A CUDA graph would launch the kernels again without asking whether pages are there: `torch.compile` is told to leave
# the operation out of those that it makes (``mode="reduce-overhead"``), if this torch can be told so.
_TAGS: dict[str, Any] = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}

_layers: WeakValueDictionary[int, CustomOpLayer] = WeakValueDictionary()
_numbers = count(randbits(62))  # a graph that another process has saved must not meet a layer of this one


class CustomOpLayer(nn.Module):
    """A layer that torch's graphs call by its number, for as long as it lives. A copy is another layer."""

    def __init__(self) -> None:
        super().__init__()
        self._number = _register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = _register(self)

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """Of a linear layer ``[..., in_features]`` to ``[..., out_features]`` in x's dtype; of a table ids to rows."""


def _register(layer: CustomOpLayer) -> int:
    number = next(_numbers)
    _layers[number] = layer
    return number


def is_tracing() -> bool:
    """Whether torch records operations, or computes shapes only.

    A record lacks what native code does, so layers call the operation instead. At any other time the dispatcher would
    only cost time.
    """
    return torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack() > 0


@torch.library.custom_op("weightpager::paged_linear", mutates_args=(), **_TAGS)
def paged_linear(x: Tensor, layer: int, out_features: int) -> Tensor:  # noqa: ARG001 - for the fake below
    return _found(layer).compute(x)


def _found(layer: int) -> CustomOpLayer:
    found = _layers.get(layer)
    if found is None:
        raise EngineClosedError(
            "a graph calls a paged layer that no longer exists: graphs live as long as the engine and the process that "
            "they were made in. Compile or export again."
        )
    return found


@torch.library.custom_op("weightpager::paged_embedding", mutates_args=(), **_TAGS)
def paged_embedding(ids: Tensor, layer: int, columns: int, dtype: torch.dtype) -> Tensor:  # noqa: ARG001 - as above
    return _found(layer).compute(ids)


@paged_embedding.register_fake
def _(ids: Tensor, layer: int, columns: int, dtype: torch.dtype) -> Tensor:  # noqa: ARG001 - the operation's signature
    return ids.new_empty(*ids.shape, columns, dtype=dtype)


@paged_linear.register_fake
def _(x: Tensor, layer: int, out_features: int) -> Tensor:  # noqa: ARG001 - the operation's signature
    return x.new_empty(*x.shape[:-1], out_features)


class CustomOpEmbedding(CustomOpLayer):
    """A `torch.nn.Embedding` without a parameter. Inference only: there is no weight that a gradient could go to.

    `torch.compile` and `torch.export` see one operation, ``weightpager::paged_embedding``.

    Args:
        num_embeddings, embedding_dim: shape of the table.
        dtype: of what is looked up. ``module.to(dtype)`` changes it.
        padding_idx: as that of `torch.nn.Embedding`; tells nothing but that.
    """

    wide: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype, padding_idx: int | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.register_buffer("wide", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` of whole numbers to ``[..., embedding_dim]``. Errors are those of `compute`."""
        if is_tracing():
            found: Tensor = paged_embedding(ids, self._number, self.embedding_dim, self.wide.dtype)
            return found
        return self.compute(ids)

    @abstractmethod
    def compute(self, ids: Tensor) -> Tensor: ...

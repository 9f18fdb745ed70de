"""Tensors as large as the model, in memory or in files that are mapped.

A mapped file is page cache: it is written out and taken out of memory where that is short, and read again when it is
used. So what is held this way need not fit, and a control group's limit is kept all the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import torch
from torch import Tensor
from transformers import PreTrainedModel

from weightpager.bundle.writer import storage_errors

_LEAST = 1 << 20
"""Bytes below which a tensor stays in memory: norms and biases are many, and small."""


@dataclass(frozen=True)
class Scratch:
    """Where a compile holds what is as large as its model.

    Attributes:
        folder: the folder in which files are made; they have no names, so that nothing is left whatever stops the
            compile. None holds all in memory.
    """

    folder: Path | None = None

    def hold(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The same values, in ``dtype`` if one is given; the very tensor where it can stay as it is.

        Raises:
            CompileError: the storage refused it.
        """
        dtype = dtype or tensor.dtype
        size = tensor.numel() * dtype.itemsize
        if self.folder is None or size < _LEAST:
            return tensor.to(dtype)
        with storage_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=self.folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)  # a full disk says so here, not by a signal later
                mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=dtype)
        return mapped.view(tensor.shape).copy_(tensor)


IN_MEMORY = Scratch()


def widen(models: Iterable[PreTrainedModel], scratch: Scratch) -> None:
    """Turn what modules hold into float32, and hold it in ``scratch``; each tensor once, and it stays the same object.

    Raises:
        CompileError: the storage refused it.
    """
    seen: set[int] = set()
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and id(tensor) not in seen:
                seen.add(id(tensor))
                tensor.data = scratch.hold(tensor.data, torch.float32)

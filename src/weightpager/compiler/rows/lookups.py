"""What a model does with its embedding tables, found out by running it once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weightpager.compiler.model.named_parameters import canonical
from weightpager.nn import is_plain_embedding


@dataclass
class Lookups:
    """What was seen of a table.

    Attributes:
        ids: int64 [n], the rows that were looked up, as often as each text alone would have looked them up.
        words: whether these were the texts' own tokens, each time.
        read: whether the model read the table past its lookups.
    """

    ids: list[npt.NDArray[np.int64]] = field(default_factory=list)
    words: bool = True
    read: bool = False


class _Watched(nn.Embedding):
    """An embedding while it is watched."""

    def forward(self, ids: Tensor) -> Tensor:
        """Call the module, and note the ids that it looks up."""
        seen, texts = self.__dict__["_seen"], self.__dict__["_texts"]
        rows = ids.detach().reshape(-1).to(torch.int64).numpy()
        # What has no row for each text, such as positions, is looked up once for all of them.
        together = texts is not None and len(ids) != len(texts) and ids.numel() != texts.numel()
        seen.ids.append(np.tile(rows, len(texts) if together else 1))
        seen.words = seen.words and texts is not None and ids.shape == texts.shape and bool(torch.equal(ids, texts))
        self.__dict__["_inside"] = True
        try:
            return super().forward(ids)
        finally:
            self.__dict__["_inside"] = False

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        """A parameter, as `nn.Module` finds it."""
        if name == "weight" and not self.__dict__["_inside"]:
            self.__dict__["_seen"].read = True
        return super().__getattr__(name)


def watch(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Lookups]:
    """Run a model on a batch; what it did with each table that it looks rows up in, by canonical name."""
    tables = {name: module for name, module in model.named_modules() if is_plain_embedding(module)}
    prefix = model.base_model_prefix + "."
    with _watched(tables, inputs.get("input_ids")) as seen, torch.no_grad():
        model(**inputs)
    return {canonical(f"{name}.weight", prefix): found for name, found in seen.items() if found.ids}


@contextmanager
def _watched(tables: Mapping[str, nn.Embedding], texts: Tensor | None) -> Iterator[dict[str, Lookups]]:
    seen = {name: Lookups() for name in tables}
    try:
        for name, module in tables.items():
            module.__dict__.update(_seen=seen[name], _texts=texts, _inside=False)
            module.__class__ = _Watched
        yield seen
    finally:
        for module in tables.values():
            module.__class__ = nn.Embedding
            for key in ("_seen", "_texts", "_inside"):
                module.__dict__.pop(key, None)

"""How a kind of tasks calls its module: inputs, outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weightpager.bundle import TaskKind
from weightpager.bundle.format.manifest import FORMS
from weightpager.errors import NotExportableError
from weightpager.graph import GraphInput
from weightpager.graph.attributes import DIMENSIONS

_TEXT = ("input_ids", "attention_mask")


@dataclass(frozen=True)
class CallForm:
    """What a module of a kind is called with.

    Attributes:
        kind: of tasks.
        inputs: as the graph has them.
    """

    kind: TaskKind
    inputs: tuple[GraphInput, ...]

    @classmethod
    def of(cls, kind: TaskKind, image: tuple[int, int, int] | None = None) -> CallForm:
        """The form of a kind of tasks.

        Args:
            kind: of tasks.
            image: channels, height and width of what its image processor gives; None where tasks read texts.

        Raises:
            NotExportableError: images have no known size.
        """
        if FORMS[kind].images:
            if image is None:
                raise NotExportableError("images of no fixed size")
            return cls(kind, (GraphInput("pixel_values", "float32", ("batch", *image)),))
        names = (*_TEXT, "position_ids") if FORMS[kind].labels == "none" else _TEXT
        return cls(kind, tuple(GraphInput(name, "int64", DIMENSIONS) for name in names))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the module's outputs. What a language model's head reads is found in its graph."""
        texts = "length" in self.inputs[0].shape
        return ("logits", "hidden") if texts and FORMS[self.kind].labels != "none" else ("logits",)

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions that a call states."""
        return DIMENSIONS if "length" in self.inputs[0].shape else DIMENSIONS[:1]

    def tensors(self, sizes: Mapping[str, int]) -> tuple[Tensor, ...]:
        """Inputs of these sizes, without memory."""
        return tuple(
            torch.empty(
                [sizes[size] if isinstance(size, str) else size for size in each.shape],
                dtype=getattr(torch, each.dtype),
                device="meta",
            )
            for each in self.inputs
        )


class Called(nn.Module):
    """A module with positional inputs, and the form's outputs."""

    def __init__(self, module: PreTrainedModel, form: CallForm) -> None:
        super().__init__()
        self.module, self.form = module, form
        self._hidden: Tensor | None = None
        module.base_model.register_forward_hook(self._keep)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs for inputs in the form's order."""
        named = {each.name: tensor for each, tensor in zip(self.form.inputs, inputs, strict=True)}
        logits: Tensor = self.module(**named).logits
        hidden, self._hidden = self._hidden, None
        return (logits,) if hidden is None else (logits, hidden)

    def _keep(self, _module: nn.Module, _inputs: object, found: Any) -> None:
        """Note the last hidden states below the head."""
        if "hidden" in self.form.outputs:
            self._hidden = found.last_hidden_state

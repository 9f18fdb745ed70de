"""The tiny assistant's tasks, an input of theirs, and budgets for some of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import expanded_bytes, footprint

TASKS = ("animal", "weather", "number", "colour")
INPUTS = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}


def logits(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor] = INPUTS) -> torch.Tensor:
    with torch.inference_mode():
        return module(**inputs).logits


def room_for(bundle: Bundle, *tasks: str, spare: int = 0) -> int:
    """The budget that just holds these tasks' pages together, some pages more, and one task's block tables."""
    pages = set().union(*(bundle.pages_of(task).tolist() for task in tasks))
    return footprint(bundle).total + (len(pages) + spare) * bundle.page_bytes


def room_in_use(bundle: Bundle, *tasks: str) -> int:
    """The budget that just holds these tasks when all of them are in use."""
    tables = expanded_bytes(bundle, tasks)
    return room_for(bundle, *tasks) + max(0, tables - footprint(bundle).largest_table)

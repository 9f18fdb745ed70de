"""How evenly the paged weights share a task's budget: chosen by trial on the dense model.

Saliency foresees what a block's loss costs while all others are there. In encoders it may take nearly all of a weight
away and be right; in decoders one query projection that has lost nine tenths makes nonsense of everything behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from weightpager.compiler.data.batch import Batch
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.logits import logits_with
from weightpager.compiler.training.loss import loss
from weightpager.compiler.training.masks import Masks
from weightpager.progress import Progress

HIGH = 0.5
"""Share of an even budget that a weight keeps at least where saliency alone isn't trusted."""

_ITEMS = 4
_MARGIN = 0.9
"""High floors must add so much less to the dense loss: what little saliency loses more, recovery wins back."""


def choose_evenness(prepared: Prepared, progress: Progress) -> float:
    """0, or `HIGH` if each task's own best blocks then lose less, on training data and before any recovery.

    Args:
        prepared: with everything else.
        progress: told (stage, losses taken, losses in all).
    """
    batches = {name: of_task.calibration(_ITEMS, _ITEMS) for name, of_task in prepared.data.items()}
    alone = prepared.changed(alignment=0.0)

    def tried(number: int, masks: Masks | None) -> float:
        mean_loss = _loss(prepared, masks, batches)
        progress("choose floors", number, 3)
        return mean_loss

    low, high = (
        tried(number, choose_blocks(replace(alone, evenness=evenness)).masks)
        for number, evenness in enumerate((0.0, HIGH), 1)
    )
    if high >= low:
        progress("choose floors", 3, 3)
        return 0.0
    dense = tried(3, None)
    return HIGH if max(0.0, high - dense) < _MARGIN * (low - dense) else 0.0


def _loss(prepared: Prepared, masks: Masks | None, batches: Mapping[str, Sequence[Batch]]) -> float:
    """Mean over tasks and batches; of the dense model without masks."""
    source, losses = prepared.source, []
    with torch.no_grad():
        for task, of_task in batches.items():
            model, kind = source.models[task], prepared.data[task].kind
            weights = {} if masks is None else masks.held(source, task)
            losses += [loss(logits_with(model, weights, batch, kind), batch.labels, kind) for batch in of_task]
    return float(torch.stack(losses).mean())

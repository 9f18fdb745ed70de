"""Compiles whose pages are the same on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest

if TYPE_CHECKING:
    from weightpager.compiler.selection.block_choice import ChosenBlocks
    from weightpager.compiler.selection.prepared import Prepared

Floats = npt.NDArray[np.float64]


@contextmanager
def same_everywhere() -> Iterator[None]:
    """Compile in bfloat16, by whole products: trials, by chance on a busy machine, would decide what is learnt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightpager.compiler.training.device._bfloat16_pays", lambda: True)
        patch.setattr("weightpager.compiler.training.sparse_products._skipping_pays", lambda *_: False)
        patch.setattr("weightpager.compiler.training.loss.SHORT", 0)
        yield


@contextmanager
def blocks_by_lot() -> Iterator[None]:
    """Compile with blocks by lot: what tiny models learn differs from processor to processor, and so do their pages.

    So each task has pages that the others lack, which many tests need.
    """
    with pytest.MonkeyPatch.context() as patch, same_everywhere():
        patch.setattr("weightpager.compiler.candidates.choose_blocks", _choose)
        yield


def _choose(prepared: Prepared) -> ChosenBlocks:
    from weightpager.compiler.selection.block_choice import choose_blocks  # torch, before it is known who needs it

    lots = {task: _lots(number, task, of) for number, (task, of) in enumerate(prepared.saliency.items())}
    return choose_blocks(replace(prepared, saliency=lots, evenness=0.0))


def _lots(number: int, task: str, saliency: Mapping[str, Floats]) -> dict[str, Floats]:
    """A number for each block, a third of it the same for all tasks; one in eight belongs to this task alone."""
    found = {name: 0.5 * _lot(name, of.shape) + _lot(f"{task} {name}", of.shape) for name, of in saliency.items()}
    for name, lots in found.items():
        owner = np.floor(8 * _lot(f"owner {name}", lots.shape))
        lots[owner < 4] = 0
        lots[owner == number] = 2
    return found


def _lot(name: str, shape: tuple[int, ...]) -> Floats:
    return np.random.default_rng(zlib.crc32(name.encode())).random(shape)

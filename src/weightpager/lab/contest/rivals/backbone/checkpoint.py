"""The dense checkpoint in few bits that all tasks share: paged weights in int8 or int4, embedding tables in int8."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from weightpager.backends.torch.export import dense_weights
from weightpager.bundle import Bundle
from weightpager.lab.contest.rivals.checkpoint_file import write_checkpoint
from weightpager.lab.contest.rivals.few_bits.layers import pack_int4, takes_int4
from weightpager.lab.contest.rivals.few_bits.numbers import int4_groups, int8_rows
from weightpager.lab.contest.rivals.few_bits.replacement import SCALE
from weightpager.lab.contest.rivals.parameters import resident
from weightpager.progress import Progress

FewBits = Literal["int8", "int4"]


def quantised_path(folder: Path, dtype: FewBits) -> Path:
    """Where it lies."""
    return folder / f"shared.{dtype}.safetensors"


def write_quantised(bundle: Bundle, folder: Path, dtype: FewBits, progress: Progress) -> None:
    """Write it. The first task's weights are in it: only their size and place matter.

    Raises:
        BundleError, StoreError: the bundle is damaged.
        OSError: the storage refused it.
    """
    progress(f"write the {dtype} checkpoint", 0, 1)
    values = resident(bundle, dtype)
    for name, weight in dense_weights(bundle, next(iter(bundle.tasks))).items():
        fits = dtype == "int4" and takes_int4(weight)
        values[f"{name}.weight"], values[name + SCALE] = pack_int4(*int4_groups(weight)) if fits else int8_rows(weight)
    write_checkpoint(quantised_path(folder, dtype), values)
    progress(f"write the {dtype} checkpoint", 1, 1)

"""How much memory the stages of a compile take, training apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from weightpager.compiler.estimates.stages import Stages
from weightpager.compiler.model.dense_model import DenseModel

_PASSES = 8
"""Most passes over the data of a calibration whose sums don't fit into memory together."""


@dataclass(frozen=True)
class Bound:
    """What a compile will take, training apart.

    Attributes:
        stages: bytes of each stage, the model's included where it is in memory.
        on_disk: bytes of what lies in the scratch and comes and goes as memory allows; 0 if all is in memory.
        calibration_bytes: bytes that sums of calibration may take while they grow.
    """

    stages: Mapping[str, int]
    on_disk: int
    calibration_bytes: int

    @property
    def most(self) -> tuple[str, int]:
        """The stage that takes most, and what it takes."""
        return max(self.stages.items(), key=lambda item: item[1])


def bound(source: DenseModel, available: int | None, *, reorders: bool, on_disk: bool, adds: bool = False) -> Bound:
    """What a compile will take.

    Args:
        source: the dense model.
        available: bytes that it may take, the model's included where that is in memory; None if unknown.
        reorders: whether the model will be reordered.
        on_disk: whether the model lies in the scratch.
        adds: whether tasks are added to a bundle.
    """
    calibration_bytes = source.paged_bytes
    stages = Stages(source, reorders, adds, on_disk, calibration_bytes)
    if on_disk and available is not None:
        calibration_bytes = _room(calibration_bytes, available - stages.gradients)
        stages = replace(stages, calibration_bytes=calibration_bytes)
    held = source.parameter_bytes + (len(source.models) + source.task_file.recover.refits) * source.paged_bytes
    return Bound(stages.bytes, held if on_disk else 0, calibration_bytes)


def _room(sums: int, left: int) -> int:
    """Bytes for sums that grow in one pass, of ``left`` for them and the model on disk.

    The model has the other half: what must be read again for every batch takes longer than another pass.
    """
    return min(sums, max(sums // _PASSES, left // 2))

"""What comes before the words of a model that reads pictures: its tower and connector, which all tasks may share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from weightpager.bundle.files.tensor_file import read_header
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.names import BASE, MANIFEST, private_file
from weightpager.bundle.format.placement import Placement
from weightpager.errors import BundleFormatError, shortened

TOWER = (f"{BASE}vision_tower.", f"{BASE}vision_model.", f"{BASE}visual.")
CONNECTOR = (f"{BASE}multi_modal_projector.", f"{BASE}connector.", f"{BASE}image_newline")
"""Beginnings of the canonical names of a model's parts; ``visual`` has its connector inside."""

_NAMED = 120
"""Characters of a tensor's name that an error has."""


def is_before_words(name: str) -> bool:
    """Whether a parameter, by canonical name, is the picture tower's or the connector's."""
    return name.startswith((*TOWER, *CONNECTOR))


def check_shared(root: Path, manifest: Manifest, placement: Placement) -> None:
    """Refuse tasks of which some see other features of a picture, where the manifest says that all see the same.

    Features are kept for all tasks then, so that one would get another's. Reads the headers of the tasks' own files.

    Raises:
        BundleFormatError: tasks differ, or a file with their own parameters is damaged or missing.
    """
    if manifest.pictures is None or manifest.pictures.blocks != "shared":
        return
    for problem in (*_other_blocks(manifest, placement, manifest.pictures.layers), *_own(root, manifest)):
        raise BundleFormatError(MANIFEST, "pictures.blocks", f"own, since {problem}", "shared")


def _other_blocks(manifest: Manifest, placement: Placement, layers: int) -> Iterator[str]:
    # Tasks that have the same values of a block use it in one place: no table need be built.
    numbers = placement.numbers
    named = list(zip(numbers.names, numbers.layers, strict=True))
    shared = np.array([layer < layers or is_before_words(name) for name, layer in named])
    of_pages = np.isin(placement.layers, np.array(numbers.layers)[shared])
    first, *others = manifest.tasks
    for task, other in enumerate(others, 1):
        differs = np.unpackbits(placement.used[0] ^ placement.used[task], count=placement.locations, bitorder="little")
        locations = np.flatnonzero(differs.reshape(placement.blocks.shape) & of_pages[:, None])
        found = numbers.split(np.sort(placement.numbers_at(locations)))
        for name, is_shared, blocks in zip(numbers.names, shared, found, strict=True):
            if is_shared and blocks.start < blocks.stop:
                yield f"{first.name} and {other.name} have other blocks of {shortened(name, _NAMED)}"


def _own(root: Path, manifest: Manifest) -> Iterator[str]:
    """What tasks have beside blocks in the tower and the connector."""
    for task in manifest.tasks:
        private = private_file(task.name)
        for name in read_header(root, private, manifest.entry(private)):
            if is_before_words(name):
                yield f"{task.name} has {shortened(name, _NAMED)} of its own"
        for at in () if task.low_rank is None else task.low_rank.weights:
            if is_before_words(manifest.weights[at].name):
                yield f"{task.name} has low-rank parts of its own in {shortened(manifest.weights[at].name, _NAMED)}"

"""Pictures of a driving sample, read from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from weightpager_lab.samples.road_scene import Pixels


def images(folder: Path, names: Sequence[str]) -> Pixels:
    """Pictures of a sample's folder, [N, side, side, 3]."""
    from PIL import Image

    pictures = []
    for name in names:
        with Image.open(folder / name) as image:
            pictures.append(np.asarray(image))
    return np.stack(pictures)

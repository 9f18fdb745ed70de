"""Files of parameters: the one that tasks share, and each task's own."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path

from weightpager.bundle.files.tensor_file import Header, StoredTensors, stored_tensors
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.names import RESIDENT, private_file
from weightpager.bundle.format.whole_weight import check_whole
from weightpager.errors import BundleFormatError

_DTYPES = ("bfloat16", "float32", "bool", "int8", "int16", "int32", "int64", "uint8")
"""Dtypes of parameters that kernels compute with, and of buffers in transformers' modules."""

_MOST_AXES = 8
_MOST_VALUES = 2**48  # a limit for shapes with an empty axis, whose other axes could otherwise have any size


def parameter_files(manifest: Manifest) -> list[str]:
    """Names of all parameter files of a bundle."""
    return [RESIDENT, *(private_file(task.name) for task in manifest.tasks)]


def stored_parameters(root: Path, manifest: Manifest, name: str) -> AbstractContextManager[StoredTensors]:
    """A file of parameters, checked and open.

    Args:
        root: bundle directory.
        manifest: the bundle's.
        name: of the file.
    """
    return stored_tensors(root, name, manifest.entry(name), lambda header: _check(header, manifest, name))


def _check(header: Header, manifest: Manifest, name: str) -> None:
    for key, stated in header.items():
        if stated.dtype not in _DTYPES:
            raise BundleFormatError(name, key[:400], f"one of {', '.join(_DTYPES)}", stated.dtype)
        if len(stated.shape) > _MOST_AXES or math.prod(max(1, axis) for axis in stated.shape) > _MOST_VALUES:
            raise BundleFormatError(name, key[:400], f"at most {_MOST_AXES} axes and {_MOST_VALUES} values", stated)
    check_whole(header, manifest.whole_weights, manifest.block_shape, name)

"""How large the files of a bundle may be: what the manifest's counts justify, or more than any honest one needs."""

from __future__ import annotations

from weightpager.bundle.format import page_file, placement, row_table
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.names import MANIFEST, MODEL
from weightpager.errors import BundleFormatError
from weightpager.graph.file import MOST_BYTES, kind_of_file

_JSON = 16 * 2**20  # most bytes of a report, or of a low-rank part's configuration
_CONFIGURATION = "config.json"  # how names of configurations in ``model/`` end
_VOCABULARY = 128 * 2**20
"""Most bytes of other files in ``model/``; a vocabulary of a quarter of a million tokens has 35 MB."""

_HEADER = 64 * 2**10
_TENSOR_HEADER = 256  # bytes of a safetensors header, and what each tensor adds to it beside its name
_LETTER = 6
"""A letter of a name may be escaped in JSON, as ``\\u0000``."""

_INDEX_PAGE = 32 + 4 + 8  # bytes of a page's id, layer and signature
_INT32 = 4

_LEAST_PARAMETERS = 4 * 2**30
_PARAMETERS = 64 * 4
"""Bytes of resident or private parameters per element of a paged weight: experts may be resident, and a vocabulary's
table may be much larger than all else in a small model."""


def check_sizes(manifest: Manifest) -> None:
    """Refuse files that are larger than the manifest's counts justify, since readers read and hash all of them."""
    places = manifest.pages * manifest.blocks_per_page
    most = {
        page_file.FILE: _HEADER + (manifest.pages + manifest.row_pages) * _INDEX_PAGE,
        placement.PERMUTATIONS: _of_permutations(manifest),
        row_table.FILE: _of_row_places(manifest),
        placement.FILE: _HEADER + _INT32 * places + len(manifest.tasks) * (places // 8 + 1),
    }
    for name, entry in manifest.files.items():
        limit = most.get(name) or _of_other_file(manifest, name)
        if entry.bytes > limit:
            raise BundleFormatError(MANIFEST, f"files.{name}.bytes", f"at most {limit}", entry.bytes)


def _of_permutations(manifest: Manifest) -> int:
    """Most bytes of the permutations of all axes, if as many resident weights as paged ones were reordered."""
    axes = sum(weight.out_features + weight.in_features for weight in manifest.weights)
    return _JSON + 16 * _INT32 * axes


def _of_row_places(manifest: Manifest) -> int:
    """Most bytes of the places of all rows, whose pages justify them."""
    headers = sum(_TENSOR_HEADER + _LETTER * len(table.name) for table in manifest.row_tables)
    return _HEADER + headers + _INT32 * sum(table.rows for table in manifest.row_tables)


def _of_other_file(manifest: Manifest, name: str) -> int:
    """Most bytes of a file in ``model/``, a report, or parameters that are resident, private or low-rank."""
    if kind_of_file(name) is not None:
        return MOST_BYTES
    if name.startswith(f"{MODEL}/") and not name.endswith(_CONFIGURATION):
        return _VOCABULARY
    if name.endswith(".json"):
        return _JSON
    return _LEAST_PARAMETERS + _PARAMETERS * sum(one.out_features * one.in_features for one in manifest.weights)

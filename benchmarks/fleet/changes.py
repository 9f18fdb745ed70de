"""Bytes that a device pulls for a bundle with one task more, and with one task trained again."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.fleet import Device, Place
from weightpager.bundle import Bundle, PageIndex
from weightpager.bundle.format import page_file
from weightpager.bundle.garbage import collect
from weightpager.bundle.writer import writing
from weightpager.delivery.pulling.pull import Pulled
from weightpager.errors import ConfigError

_SHARES = (0.1, 0.5, 1.0)
"""Of a task's own pages that are changed: one at least."""


def added(bundle: Path, folder: Path) -> dict[str, Any]:
    """A device has the bundle without its last task, and pulls the whole one."""
    place, device = _begun(folder)
    without = folder / "without.bundle"
    shutil.copytree(bundle, without)
    task = list(Bundle.open(bundle).tasks)[-1]
    collect(without, drop=[task])
    _pulled(place, device, without)
    done = _pulled(place, device, bundle)
    old, new = Bundle.open(without), Bundle.open(bundle)
    uses = {new.index.ids[page].tobytes() for page in new.pages_of(task)}
    overlap = len(uses & {row.tobytes() for row in old.index.ids}) / len(uses)
    return {"task": task, "overlap": round(overlap, 3), **_figures(done)}


def trained_again(bundle: Path, folder: Path) -> dict[str, Any]:
    """A device has the bundle, and pulls one in which a share of a task's own pages are others."""
    found = {}
    for share in _SHARES:
        place, device = _begun(folder / str(share))
        changed = folder / str(share) / "changed.bundle"
        pages = _change(bundle, changed, share)
        _pulled(place, device, bundle)
        done = _pulled(place, device, changed)
        size = Bundle.open(bundle).page_bytes
        found[str(share)] = {"changed_bytes": pages * size, **_figures(done)}
    return found


def _begun(folder: Path) -> tuple[Place, Device]:
    folder.mkdir(parents=True)
    place = Place.make(folder)
    return place, Device(folder / "device", place.trust)


def _pulled(place: Place, device: Device, bundle: Path) -> Pulled:
    place.publish(bundle)
    return device.pull(place.root)


def _figures(done: Pulled) -> dict[str, Any]:
    assert done.cost is not None
    allowed = 1.1 * done.cost.page_bytes + 65536
    return {
        "lacking_bytes": done.cost.page_bytes,
        "pulled_bytes": done.received,
        "bundle_bytes": done.cost.bundle_bytes,
        "of_allowed": round(done.received / allowed, 3),
        "saved": round(1 - done.received / done.cost.bundle_bytes, 4),
    }


def _change(bundle: Path, out: Path, share: float) -> int:
    """Write a bundle in which some of its last task's own pages have other bytes; how many."""
    opened = Bundle.open(bundle)
    own = np.flatnonzero(opened.pages.signatures == np.uint64(1 << (len(opened.tasks) - 1)))
    if not len(own):
        raise ConfigError(f"{bundle}: expected pages that only the last task needs, found none; take another bundle")
    chosen = set(own[: math.ceil(share * len(own))].tolist())
    manifest, size = opened.manifest, opened.page_bytes
    with writing(out) as writer:
        ids: list[bytes] = []
        for name, first, count in manifest.page_ranges():
            ids += writer.put_pages(name, _pages(bundle / name, first, count, size, chosen), count, size)
        for name in manifest.files:
            if name != page_file.FILE:
                writer.link(name, bundle / name)
        found = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
        blocks = PageIndex(found[: manifest.pages], opened.pages.layers, opened.pages.signatures)
        writer.put_index(blocks.with_rows(found[manifest.pages :]))
        writer.finish(manifest)
    return len(chosen)


def _pages(path: Path, first: int, count: int, size: int, chosen: set[int]) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(len(page_file.header(count, size)))
        for page in range(first, first + count):
            content = file.read(size)
            yield bytes(byte ^ 1 for byte in content) if page in chosen else content

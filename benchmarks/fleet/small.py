"""A small fleet to break: a repository with two versions of a bundle, and a device that has the first."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.fleet import Device, Fleet, Place
from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect


def small_fleet(folder: Path) -> Fleet:
    """Made once for a trial, and copied for each turn."""
    import weightpager as wp
    from tests.support.models import tiny  # torch, which processes that are killed don't need

    folder.mkdir(parents=True)
    new, old = folder / "new.bundle", folder / "old.bundle"
    wp.compile(tiny.assistant(folder), out=new)
    shutil.copytree(new, old)
    collect(old, drop=[list(Bundle.open(new).tasks)[-1]])
    place = Place.make(folder / "made")
    device = Device(folder / "made" / "device", place.trust)
    place.publish(old)
    device.pull(place.root)
    place.publish(new)
    return Fleet(place, old, new, device)
